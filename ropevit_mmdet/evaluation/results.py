"""What a detector takes for what, and its precision over recall, from its results on a dataset.

Precision and recall are pycocotools' own (COCOeval), with the settings of mmdet's CocoMetric, so
that the mean of a curve is the AP that a test reports.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ropevit_mmdet.evaluation.result_file import ImageResult

IOUS = (0.5, 0.75)
_MAX_DETECTIONS = (100, 300, 1000)  # of an image, as CocoMetric counts them; the last one


@dataclass(frozen=True)
class PrecisionRecall:
    """Interpolated precision of each class at 101 values of recall, 0 to 1, for each of `IOUS`."""

    names: tuple[str, ...]
    recall: np.ndarray  # [101]
    precision: np.ndarray  # [IoUs, 101, classes]; NaN for a class without objects

    def average(self, iou: int) -> float:
        """AP at the iou-th of `IOUS`: the mean over recall and classes; NaN without any object."""
        known = self.precision[iou][~np.isnan(self.precision[iou])]
        return float(known.mean()) if known.size else math.nan


class Annotations:
    """The annotations that results are held against; labels are positions in `names`.

    Raises ValueError if the file does not know one of the classes.
    """

    def __init__(self, coco: COCO, names: Sequence[str]) -> None:
        ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
        missing = [name for name in names if name not in ids]
        if missing:
            raise ValueError(f"the annotations have no class {missing[0]!r}, but {', '.join(ids)}")
        self.coco, self.names = coco, tuple(names)
        self.category_ids = [ids[name] for name in names]

    def check(self, results: Sequence[ImageResult]) -> None:
        """Raise ValueError if results are of other images or of more classes."""
        other = [one.image_id for one in results if one.image_id not in self.coco.imgs]
        if other:
            raise ValueError(f"the results have an image {other[0]} that the annotations lack")
        labels = max((int(one.labels.max()) for one in results if len(one.labels)), default=0)
        if labels >= len(self.names):
            raise ValueError(f"the results have a label {labels}, there are {len(self.names)}")

    def of(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (x, y, width, height) [M, 4], labels [M] and crowd flags [M] of an image."""
        found = [one for one in self.coco.imgToAnns.get(image_id, [])
                 if one["category_id"] in self.category_ids]  # fmt: skip
        boxes = np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4)
        labels = np.array([self.category_ids.index(one["category_id"]) for one in found], np.int64)
        return boxes, labels, np.array([one.get("iscrowd", 0) for one in found], bool)


def annotation_file(config: Config) -> Path:
    """The annotation file that a config's test is evaluated on.

    Raises ValueError if the config names none.
    """
    evaluators = config.get("test_evaluator") or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if evaluator.get("ann_file"):
            return Path(evaluator.ann_file)
    raise ValueError("the config's test_evaluator names no ann_file: what is the ground truth?")


def confusion_matrix(
    results: Sequence[ImageResult],
    annotations: Annotations,
    *,
    score_thr: float = 0.3,
    tp_iou_thr: float = 0.5,
) -> np.ndarray:
    """How often an object of class i (rows) was found as class j: [classes + 1, classes + 1].

    The last row is background that was taken for an object, the last column objects that were
    not found. An object and a detection of at least `score_thr` are a pair from an IoU of
    `tp_iou_thr` on; each is in one pair at most, first those of one class, then by IoU. So rows
    add up to objects and columns to detections; mmdet's tool counts every overlap. Detections in
    a crowd region that are in no pair do not count.
    """
    annotations.check(results)
    background = len(annotations.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    found = {one.image_id: one for one in results}
    for image_id in annotations.coco.imgs:
        boxes, labels, crowd = annotations.of(image_id)
        dets = found.get(image_id)
        kept = np.zeros(0, bool) if dets is None else dets.scores >= score_thr
        det_boxes = np.zeros((0, 4)) if dets is None else _widths(dets.boxes[kept])
        det_labels = np.zeros(0, np.int64) if dets is None else dets.labels[kept]
        overlaps = np.zeros((len(det_boxes), len(boxes)))
        if overlaps.size:
            overlaps = np.asarray(rle.iou(det_boxes, boxes, crowd.astype(np.uint8)))
        of_det = _pairs(np.where(crowd, 0.0, overlaps), det_labels, labels, tp_iou_thr)
        in_crowd = (overlaps * crowd >= tp_iou_thr).any(axis=1) & bool(crowd.any())
        for det, label in enumerate(det_labels):
            if of_det[det] >= 0:
                matrix[labels[of_det[det]], label] += 1
            elif not in_crowd[det]:
                matrix[background, label] += 1
        missed = np.setdiff1d(np.flatnonzero(~crowd), of_det)
        np.add.at(matrix, (labels[missed], background), 1)
    return matrix


def precision_recall(results: Sequence[ImageResult], annotations: Annotations) -> PrecisionRecall:
    """The curves of every class: all 0 where nothing at all was found."""
    annotations.check(results)
    rows = [
        {"image_id": one.image_id, "category_id": annotations.category_ids[label],
         "bbox": box.tolist(), "score": float(score)}
        for one in results
        for box, label, score in zip(_widths(one.boxes), one.labels, one.scores, strict=True)
    ]  # fmt: skip
    if not rows:  # COCOeval takes no such results
        objects = [annotations.of(image_id) for image_id in annotations.coco.imgs]
        there = {int(label) for _, labels, crowd in objects for label in labels[~crowd]}
        zeros = [0.0 if label in there else np.nan for label in range(len(annotations.names))]
        recall = np.linspace(0, 1, 101)
        return PrecisionRecall(annotations.names, recall, np.tile(zeros, (len(IOUS), 101, 1)))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        evaluation = COCOeval(annotations.coco, annotations.coco.loadRes(rows), "bbox")
        evaluation.params.catIds = annotations.category_ids
        evaluation.params.imgIds = list(annotations.coco.imgs)
        evaluation.params.iouThrs = np.array(IOUS)
        evaluation.params.maxDets = list(_MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoUs, recall, classes], any area
    return PrecisionRecall(
        annotations.names, evaluation.params.recThrs, np.where(precision < 0, np.nan, precision)
    )


def as_json(
    matrix: np.ndarray, curves: PrecisionRecall, *, score_thr: float, tp_iou_thr: float
) -> dict[str, Any]:
    """All numbers of the figures; AP and precision are None where there are no objects."""
    found = {}
    for index, iou in enumerate(IOUS):
        by_class = {}
        for label, name in enumerate(curves.names):
            values = curves.precision[index, :, label]
            known = not np.isnan(values).any()
            by_class[name] = {
                "ap": round(float(values.mean()), 6) if known else None,
                "precision": values.round(6).tolist() if known else None,
            }
        average = curves.average(index)
        average = None if math.isnan(average) else round(average, 6)
        found[str(iou)] = {"ap": average, "classes": by_class}
    return {
        "classes": list(curves.names),
        "score_thr": score_thr,
        "tp_iou_thr": tp_iou_thr,
        "confusion_matrix": matrix.tolist(),
        "recall": curves.recall.round(6).tolist(),
        "precision_recall": found,
    }


def _pairs(
    overlaps: np.ndarray, det_labels: np.ndarray, labels: np.ndarray, threshold: float
) -> np.ndarray:
    """The object of each detection, -1 for none: [N] from IoUs [N, M]."""
    of_det = np.full(len(overlaps), -1)
    dets, objects = np.nonzero(overlaps >= threshold)
    differ = det_labels[dets] != labels[objects]
    taken: set[int] = set()
    for index in np.lexsort((-overlaps[dets, objects], differ)):
        det, thing = int(dets[index]), int(objects[index])
        if of_det[det] < 0 and thing not in taken:
            of_det[det] = thing
            taken.add(thing)
    return of_det


def _widths(boxes: np.ndarray) -> np.ndarray:
    """(x1, y1, x2, y2) as (x, y, width, height)."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
