"""Precision over recall of a detector, computed by COCO's evaluation as in mmdet's CocoMetric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ropevit_mmdet.evaluation.annotations import Annotations, Detections
from ropevit_mmdet.evaluation.result_file import ImageResult

IOUS = (0.5, 0.75)
_MAX_DETECTIONS = [100, 300, 1000]  # of an image, as in CocoMetric; the last one counts


FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class PrecisionRecall:
    """Interpolated precision of each class over recall, for each of `IOUS`, and AP.

    Attributes:
        names: Class names.
        recall: [101], 0 to 1.
        precision: [IoUs, 101, classes]; NaN for a class without objects.
        figures: `FIGURES` of each class, [classes, 6]; NaN where there are no objects.
    """

    names: tuple[str, ...]
    recall: np.ndarray
    precision: np.ndarray
    figures: np.ndarray

    def average(self, iou: int) -> float:
        """AP at the iou-th of `IOUS`: the mean over recall and classes; NaN without any object."""
        known = self.precision[iou][~np.isnan(self.precision[iou])]
        return float(known.mean()) if known.size else math.nan


def precision_recall(
    results: Sequence[ImageResult], annotations: Annotations, iou_type: str = "bbox"
) -> PrecisionRecall:
    """Computes the curves of every class; their mean is the AP that a test reports.

    With `iou_type` "segm" for masks, which all objects and detections must have.
    """
    rows = [
        {"image_id": image_id, "category_id": annotations.category_ids[label],
         "score": float(score), **shape}
        for image_id, found in annotations.match(results).items()
        for label, score, shape in zip(found.labels, found.scores, _shapes(found, iou_type))
    ]  # fmt: skip
    detections = COCO(annotations.coco.dataset).loadRes(rows)
    evaluation = COCOeval_faster(annotations.coco, detections, iou_type)
    evaluation.params.catIds = annotations.category_ids
    evaluation.params.imgIds = annotations.image_ids
    evaluation.params.maxDets = _MAX_DETECTIONS
    evaluation.evaluate()
    evaluation.accumulate()
    order = np.argsort(np.argsort(annotations.category_ids))  # COCO's evaluation sorts them
    precision = evaluation.eval["precision"][..., -1]  # [IoUs, recall, classes, areas]
    precision = np.where(precision < 0, np.nan, precision)[:, :, order]
    shown = [int(np.isclose(evaluation.params.iouThrs, iou).argmax()) for iou in IOUS]
    any_area = precision[shown, :, :, 0]
    by_area = precision.mean(axis=(0, 1)).T  # any, small, medium, large
    figures = np.stack([by_area[0], *any_area.mean(axis=1), *by_area[1:]], axis=1)
    return PrecisionRecall(annotations.names, evaluation.params.recThrs, any_area, figures)


def as_json(
    matrix: np.ndarray, curves: PrecisionRecall, *, score_thr: float, tp_iou_thr: float
) -> dict[str, Any]:
    """All numbers of the figures; AP and precision are None where there are no objects."""
    by_iou = {}
    for index, iou in enumerate(IOUS):
        classes = {}
        for name, values in zip(curves.names, curves.precision[index].T):
            precision = None if np.isnan(values).any() else values.round(6).tolist()
            classes[name] = {"ap": _rounded(values.mean()), "precision": precision}
        by_iou[str(iou)] = {"ap": _rounded(curves.average(index)), "classes": classes}
    return {
        "classes": list(curves.names),
        "score_thr": score_thr,
        "tp_iou_thr": tp_iou_thr,
        "confusion_matrix": matrix.tolist(),
        "recall": curves.recall.round(6).tolist(),
        "precision_recall": by_iou,
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _shapes(found: Detections, iou_type: str) -> list[dict[str, Any]]:
    """Boxes, or masks without their boxes, whose area would count in place of the mask's."""
    if iou_type == "segm":
        return [{"segmentation": mask} for mask in found.masks]
    return [{"bbox": box} for box in found.boxes.tolist()]
