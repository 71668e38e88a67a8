"""Checks the datasets that a config names, before a model is built or a file written."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ropevit_mmdet.datasets.validation.annotations import classes_issue, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import raise_issue

SPLITS = ("train", "val", "test")
_SOURCES = {  # pattern of a path -> how to get the dataset
    r"instances_(train|val)2017|coco[/\\](train|val|test)2017": "download COCO 2017 from "
    "https://cocodataset.org/#download to data/coco/{annotations,train2017,val2017}",
    r"shapes": "make the shapes dataset: ropevit make-shapes",
    r"": "set data_root, ann_file and data_prefix in the config",
}


class CocoFiles(NamedTuple):
    """The files of a dataset in COCO's format, and their use."""

    ann_file: Path
    img_dir: Path
    masks: bool | None = None  # whether segmentations are read; None: if any exists
    evaluated: bool = True  # whether COCO's evaluation uses it
    classes: tuple[str, ...] = ()  # of the config; empty where the file lists them


def coco_files(config: Config, splits: Sequence[str] | None = None) -> dict[CocoFiles, str]:
    """Local datasets in COCO's format of a config, with their splits, such as "val, test"."""
    files: dict[CocoFiles, str] = {}
    for split in splits or SPLITS:
        missing = splits and not config.get(f"{split}_dataloader")
        raise_issue(f"the config has no {split}_dataloader" if missing else None)
        for one in _datasets(config, split):
            files[one] = f"{files[one]}, {split}" if one in files else split
    raise_issue(None if files else "the config has no local dataset in COCO's format")
    return files


def check_datasets(config: Config, splits: Sequence[str] = SPLITS) -> None:
    """Checks files, image directories and classes of a config's datasets and evaluators.

    Only local datasets in COCO's format are checked.

    Raises:
        UserError: With the first issue: a missing path, with its source; an annotation file that is
            truncated; categories that are not the config's classes in their order.
    """
    issues = (issue for split in splits for issue in _split_issues(config, split))
    raise_issue(next(issues, None))


def path_issues(files: CocoFiles) -> Iterator[str]:
    """Paths of a dataset that do not exist, with their source."""
    for what, path in (("annotation file", files.ann_file), ("image directory", files.img_dir)):
        if not path.exists():
            source = next(
                text for pattern, text in _SOURCES.items() if re.search(pattern, str(path))
            )
            yield f"{what} {path} does not exist (current directory: {Path.cwd()}); {source}"
    if not any(files.img_dir.iterdir()):
        yield f"image directory {files.img_dir} is empty"


def is_local(settings: Mapping[str, Any], *paths: str | Path) -> bool:
    """Whether paths of a config are local files, and not read by another backend."""
    backend = (settings.get("backend_args") or {}).get("backend", "local")
    return backend == "local" and not any(re.match(r"[\w.:+-]+://", str(path)) for path in paths)


def _split_issues(config: Config, split: str) -> Iterator[str]:
    datasets = list(_datasets(config, split))
    for files in datasets:
        yield from _dataset_issues(files)
    evaluators = config.get(f"{split}_evaluator") or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        path = evaluator.get("ann_file")
        if path and is_local(evaluator, path) and not Path(path).exists():
            yield f"{split}_evaluator: annotation file {path} does not exist"
        if evaluator.get("type") not in ("CocoMetric", "FastCocoMetric") or not path:
            continue
        for files in datasets if is_local(evaluator, path) else ():
            if files.ann_file.absolute() != Path(path).absolute():
                issues = _dataset_issues(files._replace(ann_file=Path(path)))
                yield from (f"{split}_evaluator: {issue}" for issue in issues)


def _dataset_issues(files: CocoFiles) -> Iterator[str]:
    yield from path_issues(files)
    content = read_annotation_file(files.ann_file, ("images", "categories"))
    issue = classes_issue(content, files.classes)
    if issue:
        yield f"the categories of {files.ann_file} are {issue}"


def _datasets(config: Config, split: str) -> Iterator[CocoFiles]:
    init_default_scope(config.get("default_scope") or "mmdet")
    loader = config.get(f"{split}_dataloader")
    for dataset in innermost_datasets(loader["dataset"]) if loader else ():
        root, ann_file = dataset.get("data_root") or "", dataset.get("ann_file") or ""
        img_dir = (dataset.get("data_prefix") or {}).get("img", "")
        cls = dataset["type"]
        cls = DATASETS.get(cls) if isinstance(cls, str) else cls
        local = ann_file and is_local(dataset, ann_file, root, img_dir)
        if local and cls is not None and issubclass(cls, CocoDataset):
            metainfo = dataset.get("metainfo") or {}
            classes = metainfo.get("classes") or cls.METAINFO.get("classes") or ()
            yield CocoFiles(
                Path(root, ann_file),
                Path(root, img_dir),
                masks=any(step.get("with_mask") for step in dataset.get("pipeline") or []),
                evaluated=split != "train",
                classes=() if isinstance(classes, str) else tuple(classes),
            )


def innermost_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The datasets inside wrappers such as RepeatDataset, ConcatDataset, MultiImageMixDataset."""
    inner = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    for part in inner:
        yield from innermost_datasets(part)
    if not inner:
        yield dataset
