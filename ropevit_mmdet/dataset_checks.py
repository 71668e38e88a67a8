"""Check that a config's data sets are there and fit it, before a model is built or a file written.

mmdet numbers classes in the order of the annotation file and drops those that the file lacks
(`CocoDataset.load_data_list`), so that names can shift without a word: it is an error here.
"""

import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

SPLITS = ("train", "val", "test")
_CURES = (  # what a path looks like, how to get what it should hold
    (
        re.compile(r"instances_(train|val)2017|coco[/\\](train|val|test)2017"),
        "COCO 2017 is at https://cocodataset.org/#download: unpack it as "
        "data/coco/{annotations,train2017,val2017}",
    ),
    (re.compile(r"shapes"), "make the shapes data set: python tools/make_shapes.py"),
    (re.compile(""), "set data_root, ann_file and data_prefix in the config"),
)
_CATEGORIES = b'"categories"'


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """CocoDataset that says what is missing and where to get it, whichever tool builds it.

    Raises ValueError as `check_datasets` does, when it loads its annotations.
    """

    def load_data_list(self) -> list[dict]:
        settings = {"metainfo": {"classes": list(self.metainfo["classes"])}, "type": type(self)}
        for key in ("ann_file", "data_prefix", "backend_args"):
            settings[key] = getattr(self, key)
        _check_dataset("test" if self.test_mode else "train", settings)
        return super().load_data_list()


def check_datasets(config: Config, splits: Sequence[str] = SPLITS) -> None:
    """Check the annotation files and picture folders of some of a config's splits.

    Remote data sets and those without an annotation file are left alone. Raises ValueError: a
    path that is not there with where to get it, an annotation file that is cut short, and one
    whose categories are not the config's classes in their order.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            continue
        for dataset in _innermost(loader["dataset"]):
            _check_dataset(split, dataset)
        evaluators = config.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            path = evaluator.get("ann_file")
            if path and _is_local(evaluator, path):
                _require(split, "annotation file", Path(path))


def annotated_categories(path: Path) -> list[str]:
    """The names in a COCO annotation file's `categories`, without parsing the rest of it.

    Raises ValueError if the file is cut short or has no such list.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError(f"annotation file {path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if not text[-1024:].rstrip().endswith(b"}"):
                raise ValueError(f"annotation file {path} is cut short: it does not end in '}}'")
            start = text.find(_CATEGORIES)
            while start >= 0:
                names = _names_at(text, start + len(_CATEGORIES))
                if names is not None:
                    return names
                start = text.find(_CATEGORIES, start + 1)
    raise ValueError(f"annotation file {path} has no list of categories: is it in COCO's format?")


def _check_dataset(split: str, dataset: dict[str, Any]) -> None:
    ann_file = dataset.get("ann_file")
    if not ann_file or not _is_local(dataset, ann_file, dataset.get("data_root") or ""):
        return
    root = Path(dataset.get("data_root") or "")
    path = root / ann_file
    _require(split, "annotation file", path)
    prefixes = dataset.get("data_prefix") or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        _require(split, "picture folder", root / prefix)
        if not any(os.scandir(root / prefix)):
            raise ValueError(f"{split} data set: picture folder {root / prefix} is empty")
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    if kind is not None and issubclass(kind, CocoDataset) and path.suffix == ".json":
        classes = (dataset.get("metainfo") or {}).get("classes") or kind.METAINFO.get("classes")
        if classes and not isinstance(classes, str):  # a string is a file that lists them
            _check_classes(split, path, list(classes))


def _check_classes(split: str, path: Path, classes: list[str]) -> None:
    names = annotated_categories(path)
    found = [name for name in names if name in set(classes)]
    if found == classes:
        return
    if not found:
        problem = "share no name with the config's classes"
    elif len(found) < len(classes):
        missing = [name for name in classes if name not in found]
        problem = f"lack {_listed(missing)} of the config's classes"
    else:
        problem = "have another order than the config's classes, and labels go by the file's"
    raise ValueError(
        f"{split} data set: the categories of {path} ({_listed(names)}) {problem} "
        f"({_listed(classes)}); set metainfo = dict(classes=(...)) in the config to names of the "
        "file, in its order"
    )


def _require(split: str, what: str, path: Path) -> None:
    if path.exists():
        return
    cure = next(cure for pattern, cure in _CURES if pattern.search(str(path)))
    raise ValueError(
        f"{split} data set: {what} {path} does not exist (looked in {Path.cwd()}); {cure}"
    )


def _innermost(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The data sets within wrappers such as RepeatDataset, ConcatDataset, MultiImageMixDataset."""
    if "dataset" in dataset:
        yield from _innermost(dataset["dataset"])
    elif "datasets" in dataset:
        for part in dataset["datasets"]:
            yield from _innermost(part)
    else:
        yield dataset


def _is_local(settings: dict[str, Any], *paths: str) -> bool:
    backend = (settings.get("backend_args") or {}).get("backend", "local")
    return backend == "local" and not any("://" in str(path) for path in paths)


def _names_at(text: mmap.mmap, position: int) -> list[str] | None:
    """The names of the JSON list after `"categories"`; None if something else stands there."""
    end = position + 4096
    while True:
        chunk = text[position:end].decode("utf-8", errors="replace").lstrip()
        value = chunk[1:].lstrip()
        if not chunk.startswith(":") or not value.startswith("["):
            return None
        try:
            categories, _ = json.JSONDecoder().raw_decode(value)
        except ValueError:
            if end >= len(text):
                return None
            end = position + 4 * (end - position)
            continue
        if all(isinstance(category, dict) and "name" in category for category in categories):
            return [category["name"] for category in categories]
        return None


def _listed(names: Sequence[str], at_most: int = 6) -> str:
    more = f", ... {len(names)} in all" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
