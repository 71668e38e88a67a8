"""Checks the datasets and evaluators of a config, before a model is built or a file written."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset, Objects365V1Dataset, Objects365V2Dataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import Registry, init_default_scope

from ropevit_mmdet._images import image_directory, locate_images, name_forms
from ropevit_mmdet.compat.config import innermost_datasets, metric_settings, type_name
from ropevit_mmdet.datasets.validation.annotations import (
    check_annotations,
    field_issue,
    read_annotation_file,
)
from ropevit_mmdet.datasets.validation.checks import ERROR, CocoFiles, Findings, raise_issue
from ropevit_mmdet.weights.detector_checkpoint import check_classes, saved_classes

SPLITS = ("train", "val", "test")
Read = Callable[[Path], dict[str, Any]]  # an annotation file


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
            truncated; categories that are not the config's classes in their order; an evaluator
            whose file has other images than the dataset, or no objects.
    """
    read = lru_cache(1)(lambda path: read_annotation_file(path, ("images", "categories")))
    issues = (issue for split in splits for issue in _split_issues(config, split, read))
    raise_issue(next(issues, None))


def compare_classes(
    config: Config, split: str, checkpoint: Mapping[str, Any], source: str
) -> list[str]:
    """Compares the classes in a checkpoint with those of a split's dataset; returns warnings.

    Raises:
        UserError: The same classes in another order: every label would mean another class.
    """
    saved = saved_classes(checkpoint)
    init_default_scope(config.get("default_scope") or "mmdet")
    loader = config.get(f"{split}_dataloader")
    warning = None
    if saved and loader:
        classes = dataset_classes(next(innermost_datasets(loader["dataset"])))
        warning = check_classes(saved, classes, source)
    return [warning] if warning else []


def dataset_files(dataset: CocoDataset) -> CocoFiles:
    """The files of a dataset that is built, perhaps with `lazy_init`, and their use."""
    masks = [one for one in dataset.pipeline.transforms if getattr(one, "with_mask", False)]
    img_dir, filters = dataset.data_prefix.get("img") or "", dataset.filter_cfg or {}
    if isinstance(classes := dataset.metainfo["classes"], str):
        raise_issue(f"metainfo.classes is the text {classes!r}: write classes=({classes!r},)")
    return CocoFiles(
        Path(dataset.ann_file),
        Path(img_dir),
        masks=bool(masks),
        classes=tuple(dataset.metainfo["classes"]),
        trained=not dataset.test_mode,
        searched=getattr(dataset, "finds_images", False),
        partial=bool(dataset._indices or filters and not dataset.test_mode),
        local=is_local(vars(dataset), dataset.ann_file, img_dir),
        by_id=isinstance(dataset, (Objects365V1Dataset, Objects365V2Dataset)),
    )


def missing_issue(what: str, path: Path) -> str | None:
    """Says that a path of a dataset does not exist, and what to do; None if it exists."""
    issue = (
        f"{what} {path} does not exist (current directory: {Path.cwd()}): set data_root, ann_file "
        "and data_prefix; `ropevit make-shapes` writes the shapes dataset, COCO 2017 is at "
        "https://cocodataset.org/#download"
    )
    return None if path.exists() else issue


def content_issues(
    content: Mapping[str, Any], files: CocoFiles, findings: Findings
) -> Iterator[str]:
    """What makes a dataset useless: its images are missing, or errors among the findings."""
    directory = image_files(content, files)[0] if files.local else None
    if directory and (missing := missing_issue("image directory", directory)):
        yield missing
    elif directory and not any(directory.iterdir()):
        yield f"image directory {directory} is empty"
    if errors := findings.summary(ERROR):
        paths = ("--ann-file", str(files.ann_file), "--img-dir", str(files.img_dir))
        command = shlex.join(["ropevit", "check-data", *paths])
        fix = " --fix OUT.json` corrects ids" if findings.fixable else "` lists all findings"
        yield f"annotation file {files.ann_file}: {errors}; `{command}{fix}"


def image_files(
    content: Mapping[str, Any], files: CocoFiles, findings: Findings | None = None
) -> tuple[Path, dict[str, Path]]:
    """The directory of a file's images, and the path of each valid `file_name`."""
    names = (one.get("file_name") for one in content["images"] if isinstance(one, dict))
    valid = [name for name in names if name and isinstance(name, str)]
    if not files.searched:
        return files.img_dir, {name: files.img_dir / name for name in valid}
    directory = image_directory(files.ann_file, files.img_dir, valid)
    paths = locate_images(directory, valid)
    for name, path in paths.items():
        if findings and path != directory / name:
            findings.add("file names", f"{name}: {path}")
    return directory, paths


def is_local(settings: Mapping[str, Any], *paths: str | Path) -> bool:
    """Whether paths of a config are local files, and not read by another backend."""
    backend = (settings.get("backend_args") or {}).get("backend", "local")
    return backend == "local" and not any(re.match(r"[\w.:+-]+://", str(path)) for path in paths)


def dataset_metainfo(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The `metainfo` in a dataset's settings, on top of that of its type."""
    given = {key: value for key, value in (dataset.get("metainfo") or {}).items() if value}
    return {**getattr(_class(dataset, DATASETS), "METAINFO", {}), **given}


def dataset_classes(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a dataset's settings, or else those of its type; () if it has none."""
    names = dataset_metainfo(dataset).get("classes") or ()
    if isinstance(names, str):  # mmengine takes it for the path of a list
        names = list_from_file(names) if Path(names).is_file() else [names]
    return tuple(names)


def _datasets(config: Config, split: str) -> Iterator[CocoFiles]:
    """The local datasets in COCO's format of a split."""
    init_default_scope(config.get("default_scope") or "mmdet")
    loader = config.get(f"{split}_dataloader") or {}
    for settings in innermost_datasets(loader["dataset"]) if loader else ():
        ann_file, root = settings.get("ann_file"), settings.get("data_root") or ""
        is_coco = issubclass(_class(settings, DATASETS), CocoDataset)
        if ann_file and is_coco and is_local(settings, ann_file, root):
            files = dataset_files(DATASETS.build({**settings, "lazy_init": True}))
            if files.local:
                selected = files.partial or bool(loader.get("num_batch_per_epoch"))
                yield files._replace(partial=selected)


def _split_issues(config: Config, split: str, read: Read) -> Iterator[str]:
    datasets = list(_datasets(config, split))
    for files in datasets:
        if missing := missing_issue("annotation file", files.ann_file):
            yield missing
        content = read(files.ann_file)
        # A test server's file has no annotations, nor need each of several training sets.
        required = split == "train" and len(datasets) == 1 or bool(content.get("annotations"))
        yield from content_issues(content, files, _findings(content, files, required))
    loader = config.get(f"{split}_dataloader")
    if loader and len(datasets) < len(list(innermost_datasets(loader["dataset"]))):
        datasets = []  # the images of others are unknown
    evaluator = config.get(f"{split}_evaluator")
    metrics = metric_settings(evaluator)
    # Every other evaluator compares the results of all datasets with the file of each metric.
    separate = type_name(evaluator) == "MultiDatasetsEvaluator" and len(metrics) == len(datasets)
    for index, metric in enumerate(metrics):
        issues = _metric_issues(metric, [datasets[index]] if separate else datasets, read)
        yield from (f"{split}_evaluator: {issue}" for issue in issues)


def _findings(content: Mapping[str, Any], files: CocoFiles, required: bool) -> Findings:
    """All findings for a CheckedCocoDataset; LVIS and others read entries of another form."""
    findings = check_annotations(content, files, required)
    if not files.searched:
        general = ("classes", "class order", "other classes", "nothing usable")
        findings.places = {key: findings.places[key] for key in general if key in findings.places}
    return findings


def _metric_issues(
    metric: Mapping[str, Any], datasets: Sequence[CocoFiles], read: Read
) -> Iterator[str]:
    path = Path(metric.get("ann_file") or "")
    if not metric.get("ann_file") or not is_local(metric, metric["ann_file"]):
        return
    if not path.exists():
        yield f"annotation file {path} does not exist"
    is_coco = issubclass(_class(metric, METRICS), CocoMetric)
    if not is_coco or metric.get("format_only") or not datasets:
        return
    files = datasets[0]._replace(ann_file=path, trained=False, local=False, searched=False)
    files = files._replace(by_id=bool(metric.get("sort_categories")))
    yield from content_issues(read(path), files, _findings(read(path), files, True))
    yield from _image_issues(path, datasets, read)
    if any(files.partial for files in datasets) and type_name(metric) != "FastCocoMetric":
        yield (
            f"the dataset has some of the images of {path}, and {type_name(metric)} would count "
            "the objects of all others as missed: use type='FastCocoMetric'"
        )


def _image_issues(path: Path, datasets: Sequence[CocoFiles], read: Read) -> Iterator[str]:
    """Compares the images of an annotation file, by id, name and size, with those of datasets."""
    if len(datasets) == 1 and path.samefile(datasets[0].ann_file):
        return
    tested: dict[Any, tuple[Path, str]] = {}
    boxes = set()
    for files in datasets:
        images = _images_by_id(read(files.ann_file), files.img_dir)
        for key in tested.keys() & images.keys():
            yield f"image {key!r} is in {files.ann_file} and another dataset: ids must be unique"
        tested |= images
        boxes |= _boxes(read(files.ann_file))
    expected = _images_by_id(read(path), Path())
    fix = "set both to one ann_file, or to files of the same images"
    missing = Path("missing"), ""
    for key in tested | expected:
        (one, size), (other, other_size) = tested.get(key, missing), expected.get(key, missing)
        same = set(name_forms(os.path.abspath(one))) & set(name_forms(str(other)))
        if size != other_size or not same:
            texts = f"{one}{size} in the dataset, but {other}{other_size} in {path}"
            yield f"image {key!r} is {texts}: {fix}"
    if boxes and boxes.isdisjoint(_boxes(read(path))):  # splits with the same ids and names
        yield f"{path} has no box of the dataset's: {fix}"


def _images_by_id(content: Mapping[str, Any], img_dir: Path) -> dict[Any, tuple[Path, str]]:
    """Path and text of the size of each image with a valid id."""
    images = [one for one in content["images"] if not field_issue(one, ("id",))]
    return {
        one["id"]: (
            img_dir / str(one.get("file_name")),
            f" ({one.get('width')} x {one.get('height')})",
        )
        for one in images
    }


def _boxes(content: Mapping[str, Any]) -> set[tuple]:
    """Image ids and boxes, rounded to pixels, of the valid annotations."""
    entries = [
        one
        for one in content.get("annotations") or ()
        if not field_issue(one, ("image_id", "bbox"))
    ]
    return {(one["image_id"], *map(round, one["bbox"])) for one in entries}


def _class(settings: Mapping[str, Any], registry: Registry) -> type:
    """The class that a config entry names; `object` if that is a function, or not registered."""
    given = settings.get("type")
    found = registry.get(given) if isinstance(given, str) else given
    return found if isinstance(found, type) else object
