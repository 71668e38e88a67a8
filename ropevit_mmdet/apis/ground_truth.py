"""The annotations and images of a config's test data, for results of a test."""

import sys
from collections.abc import Hashable
from pathlib import Path

from mmengine.config import Config
from pycocotools.coco import COCO

from ropevit_mmdet.apis.detector import config_classes
from ropevit_mmdet.compat.config import metric_settings
from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import CocoFiles, raise_issue
from ropevit_mmdet.datasets.validation.config import coco_files, content_issues, image_files
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.result_file import Detections, read_results
from ropevit_mmdet.weights.detector_checkpoint import check_classes


def load_results(
    path: str | Path, config: Config
) -> tuple[dict[Hashable, Detections], Annotations]:
    """Reads the detections in a result file, by image id, and the annotations of a config's test.

    Raises:
        UserError: a file that cannot be read, or results of other classes or images.
    """
    names = config_classes(config)
    results, saved = read_results(path)
    if warning := check_classes(saved, names, str(path)):
        sys.stderr.write(f"warning: {warning}\n")
    metrics = metric_settings(config.get("test_evaluator"))
    files = {metric["ann_file"] for metric in metrics if metric.get("ann_file")}
    if len(files) != 1:  # ids of images may be the same in several
        raise UserError(f"the config's test_evaluator must have one ann_file, but has {len(files)}")
    annotations = Annotations(_read_coco(Path(files.pop())), names)
    detections, every = annotations.match(results), annotations.image_ids
    tested = config.test_dataloader.dataset.get("indices")
    if saved:
        annotations.image_ids = [*detections]
    elif isinstance(tested, int):  # the first ones, or if negative the last
        annotations.image_ids = every[:tested] if tested >= 0 else every[tested:]
    elif tested is not None:
        annotations.image_ids = [every[index] for index in tested]
    return detections, annotations


def image_paths(config: Config) -> dict[str, Path]:
    """The image files of a config's test data by `file_name` of the annotations."""
    paths: dict[str, Path] = {}
    for files in coco_files(config, ("test",)):
        content = read_annotation_file(files.ann_file, ("images",))
        paths |= image_files(content, files)[1]
    return paths


def _read_coco(path: Path) -> COCO:
    """Reads an annotation file, which must pass the checks of a test."""
    coco, files = COCO(), CocoFiles(path, Path(), masks=False, trained=False, local=False)
    coco.dataset = read_annotation_file(path)
    findings = check_annotations(coco.dataset, files)
    raise_issue(next(content_issues(coco.dataset, files, findings), None))
    coco.createIndex()
    return coco
