"""The annotations and images of a config's test data, for results of a test."""

import sys
from pathlib import Path

from mmengine.config import Config
from pycocotools.coco import COCO

from ropevit_mmdet.apis.detector import config_classes
from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import ERROR, CocoFiles
from ropevit_mmdet.datasets.validation.config import coco_files, image_files
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations, annotation_file
from ropevit_mmdet.evaluation.result_file import ImageResult, read_results
from ropevit_mmdet.weights.detector_checkpoint import check_classes


def load_results(path: str | Path, config: Config) -> tuple[list[ImageResult], Annotations]:
    """Reads a result file and the annotations of the images that a config's test evaluates.

    Raises:
        UserError: a file that cannot be read, or results of other classes.
    """
    names = config_classes(config)
    results, saved = read_results(path)
    if warning := check_classes(saved, names, str(path)):
        sys.stderr.write(f"warning: {warning}\n")
    coco = _read_coco(annotation_file(config))
    annotations = Annotations(coco, names, results if saved else None)
    tested = config.test_dataloader.dataset.get("indices")
    if tested is not None and not saved:
        every = annotations.image_ids
        if isinstance(tested, int):  # the first ones, or if negative the last
            tested = range(len(every))[:tested] if tested >= 0 else range(len(every))[tested:]
        annotations.image_ids = [every[index] for index in tested]
    return results, annotations


def image_paths(config: Config) -> dict[str, Path]:
    """The image files of a config's test data by `file_name` of the annotations."""
    paths: dict[str, Path] = {}
    for files in coco_files(config, ("test",)):
        content = read_annotation_file(files.ann_file, ("images",))
        paths |= image_files(content, files)[1]
    return paths


def _read_coco(path: Path) -> COCO:
    """Reads and checks an annotation file; annotations need neither `id` nor `area`."""
    coco = COCO()
    coco.dataset = read_annotation_file(path)
    annotations = coco.dataset.get("annotations") or []
    for index, one in enumerate(annotations):
        if isinstance(one, dict):
            annotations[index] = {"id": f"index {index}", "area": 1} | one
    findings = check_annotations(coco.dataset, CocoFiles(path, Path(), masks=False, trained=True))
    if findings.of(ERROR):
        raise UserError(f"annotation file {path}: {findings.summary(ERROR)}")
    coco.createIndex()
    return coco
