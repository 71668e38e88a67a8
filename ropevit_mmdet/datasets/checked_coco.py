"""Check that a config's datasets are there and fit it, before a model is built or a file written.

mmdet numbers classes in the order of the annotation file, drops those that the file lacks and
leaves out its other categories (`CocoDataset.load_data_list`), so that names shift and objects go
missing without a word: it is an error here.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.categories import check_classes
from ropevit_mmdet.datasets.validation.findings import ERROR, WARNING
from ropevit_mmdet.datasets.validation.image_files import image_error

SPLITS = ("train", "val", "test")
# Annotation files that were parsed to check them, for the datasets that load them next: a file's
# size and time, and its content. COCO's own take ten seconds.
_kept: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
_CURES = (  # what a path looks like, how to get what it should hold
    (
        re.compile(r"instances_(train|val)2017|coco[/\\](train|val|test)2017"),
        "COCO 2017 is at https://cocodataset.org/#download: unpack it as "
        "data/coco/{annotations,train2017,val2017}",
    ),
    (re.compile(r"shapes"), "make the shapes dataset: python tools/make_shapes.py"),
    (re.compile(""), "set data_root, ann_file and data_prefix in the config"),
)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """CocoDataset that names what is missing or wrong, whichever tool builds it.

    Raises ValueError when it loads its annotations, as `check_datasets` does and for every error
    that `check_annotations` finds; warnings go to the log in one line. It raises ValueError for a
    image that cannot be read or has another size than its annotations say, naming the file.
    """

    def load_data_list(self) -> list[dict]:
        settings = {"metainfo": {"classes": list(self.metainfo["classes"])}, "type": type(self)}
        for key in ("ann_file", "data_prefix", "backend_args"):
            settings[key] = getattr(self, key)
        _check_dataset("test" if self.test_mode else "train", settings)
        masks = any(getattr(step, "with_mask", False) for step in self.pipeline.transforms)
        self.COCOAPI = partial(_CheckedCOCO, masks=masks, evaluated=self.test_mode)
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:  # mmengine's samplers would look for a first image for ever
            raise ValueError(
                f"annotation file {self.ann_file}: none of its {len(self.data_list)} images is "
                f"left by filter_cfg={dict(self.filter_cfg or {})}"
            )
        return kept

    def prepare_data(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        path, size = info["img_path"], (info["height"], info["width"])
        local = _is_local(vars(self), path)
        said = image_error(path, size) if local else None  # its header, before all its pixels
        if said:
            raise ValueError(said)
        try:
            packed = self.pipeline(info)
        except Exception as error:
            said = image_error(path, size, decode=True) if local else None
            if said:
                raise ValueError(said) from error
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"while image {path} was prepared")
            raise
        sample = packed.get("data_samples") if isinstance(packed, dict) else None
        loaded = tuple(getattr(sample, "ori_shape", size))
        if loaded != size:  # OpenCV 4 does not turn WebP files
            raise ValueError(f"image {path} is loaded as {loaded}, and its header says {size}")
        return packed


class CocoFiles(NamedTuple):
    """The files of a dataset in COCO's format, and what is done with them."""

    ann_file: Path
    img_dir: Path
    masks: bool | None  # segmentations are read; None: if there is one
    evaluated: bool
    classes: tuple[str, ...] | None  # of the config


def coco_files(config: Config, splits: Sequence[str] | None = None) -> dict[CocoFiles, str]:
    """The local datasets in COCO's format of some splits of a config, those in wrappers too.

    Each with the names of its splits: those of validation and test are often one. By default all
    splits that the config has. Raises ValueError for a split that it does not have, and if there is
    no such dataset.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    there = [split for split in SPLITS if config.get(f"{split}_dataloader") is not None]
    found: dict[CocoFiles, str] = {}
    for split in splits or there:
        if split not in there:
            raise ValueError(f"the config has no {split}_dataloader")
        for dataset in _innermost(config[f"{split}_dataloader"]["dataset"]):
            root, ann_file = Path(dataset.get("data_root") or ""), dataset.get("ann_file")
            if not ann_file or not _is_local(dataset, ann_file, root) or not _is_coco(dataset):
                continue
            files = CocoFiles(
                root / ann_file,
                root / (dataset.get("data_prefix") or {}).get("img", ""),
                masks=any(step.get("with_mask") for step in dataset.get("pipeline") or []),
                evaluated=split != "train",
                classes=_classes(dataset),
            )
            found[files] = f"{found[files]}, {split}" if files in found else split
    if not found:
        raise ValueError(f"{', '.join(splits or there)}: no local dataset in COCO's format")
    return found


def check_datasets(config: Config, splits: Sequence[str] = SPLITS) -> None:
    """Check the annotation files and image directories of some of a config's splits.

    Remote datasets and those without an annotation file are left alone. Raises ValueError: a
    path that is not there with where to get it, an annotation file that is truncated, and one
    whose categories are not the config's classes in their order.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    awaited: set[Path] = set()  # by the datasets that will load them out of `_kept`
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            continue
        for dataset in _innermost(loader["dataset"]):
            path = _check_dataset(split, dataset)
            if path and _is_coco(dataset, CheckedCocoDataset):
                awaited.add(path.absolute())
        evaluators = config.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            _check_evaluator(split, evaluator, loader["dataset"])
    for path in _kept.keys() - awaited:
        del _kept[path]


def _check_dataset(split: str, dataset: dict[str, Any]) -> Path | None:
    """The annotation file of a dataset that has one here, checked."""
    ann_file = dataset.get("ann_file")
    if not ann_file or not _is_local(dataset, ann_file, dataset.get("data_root") or ""):
        return None
    root = Path(dataset.get("data_root") or "")
    path = root / ann_file
    _require(split, "annotation file", path)
    prefixes = dataset.get("data_prefix") or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        _require(split, "image directory", root / prefix)
        if not any(os.scandir(root / prefix)):
            raise ValueError(f"{split} dataset: image directory {root / prefix} is empty")
    classes = _classes(dataset) if _is_coco(dataset) else None
    if classes:
        try:
            check_classes(path, _read(path), classes)
        except ValueError as error:
            raise ValueError(f"{split} dataset: {error}") from error
    return path


def _check_evaluator(split: str, evaluator: dict[str, Any], dataset: dict[str, Any]) -> None:
    path = evaluator.get("ann_file")
    if not path or not _is_local(evaluator, path):
        return
    _require(split, "annotation file", Path(path))
    if evaluator.get("type") != "CocoMetric":
        return
    for part in _innermost(dataset):  # CocoMetric numbers the classes by its own file
        classes = _classes(part) if _is_coco(part) else None
        if classes:
            try:
                check_classes(Path(path), _read(Path(path)), classes)
            except ValueError as error:
                raise ValueError(f"{split} evaluator: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """An annotation file's content, parsed only if it is not in `_kept`; it is, then."""
    facts, key = path.stat(), path.absolute()
    state = facts.st_size, facts.st_mtime_ns
    if key not in _kept or _kept[key][0] != state:
        _kept[key] = state, read_annotation_file(path, ("images", "categories"))
    return _kept[key][1]


class _CheckedCOCO(COCO):
    """mmdet's reader of annotation files, which looks at what it read before it uses it."""

    def __init__(self, path: str, *, masks: bool, evaluated: bool) -> None:
        super().__init__()
        self.dataset = _read(Path(path))
        del _kept[Path(path).absolute()]
        findings = check_annotations(self.dataset, masks=masks, evaluated=evaluated)
        if findings.of(ERROR):
            raise ValueError(
                f"annotation file {path}: {findings.summary(ERROR)}; "
                "tools/check_dataset.py lists all that is wrong"
            )
        if findings.of(WARNING):
            said = f"annotation file {path}: {findings.summary(WARNING)}"
            MMLogger.get_current_instance().warning(said)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # mmdet's names


def _is_coco(dataset: dict[str, Any], base: type = CocoDataset) -> bool:
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    return kind is not None and issubclass(kind, base)


def _classes(dataset: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names of a dataset in COCO's format; None where a file lists them."""
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    classes = (dataset.get("metainfo") or {}).get("classes") or kind.METAINFO.get("classes")
    return None if not classes or isinstance(classes, str) else tuple(classes)


def _require(split: str, what: str, path: Path) -> None:
    if path.exists():
        return
    fix = next(fix for pattern, fix in _CURES if pattern.search(str(path)))
    raise ValueError(
        f"{split} dataset: {what} {path} does not exist (looked in {Path.cwd()}); {fix}"
    )


def _innermost(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The datasets within wrappers such as RepeatDataset, ConcatDataset, MultiImageMixDataset."""
    if "dataset" in dataset:
        yield from _innermost(dataset["dataset"])
    elif "datasets" in dataset:
        for part in dataset["datasets"]:
            yield from _innermost(part)
    else:
        yield dataset


def _is_local(settings: dict[str, Any], *paths: str) -> bool:
    backend = (settings.get("backend_args") or {}).get("backend", "local")
    return backend == "local" and not any(re.match(r"[\w.:+-]+://", str(path)) for path in paths)
