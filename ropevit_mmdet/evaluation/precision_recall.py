"""Precision over recall of a detector, computed by COCO's evaluation as in mmdet's CocoMetric."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.result_file import Detections

IOUS = (0.5, 0.75)
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MAX_DETECTIONS = [100, 300, 1000]  # of a class in an image, as in CocoMetric


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

    def means(self) -> list[float]:
        """`FIGURES` of all classes that have objects, as a test reports them; NaN for none."""
        known = (column[~np.isnan(column)] for column in self.figures.T)
        return [float(one.mean()) if one.size else math.nan for one in known]


def precision_recall(
    detections: Mapping[Hashable, Detections], annotations: Annotations, iou_type: str = "bbox"
) -> PrecisionRecall:
    """Computes curves and AP of every class.

    With `iou_type` "segm" for masks, which all objects and detections must have.
    """
    rows = [
        {"image_id": image_id, "category_id": annotations.category_ids[label],
         "score": float(score), **shape}
        for image_id, found in detections.items()
        for label, score, shape in zip(found.labels, found.scores, _shapes(found, iou_type))
    ]  # fmt: skip
    found = COCO(annotations.coco.dataset).loadRes(rows)
    evaluation = COCOeval_faster(annotations.coco, found, iou_type)
    evaluation.params.catIds = annotations.category_ids
    evaluation.params.imgIds = annotations.image_ids
    evaluation.params.maxDets = _MAX_DETECTIONS
    evaluation.evaluate()
    evaluation.accumulate()
    order = np.argsort(np.argsort(annotations.category_ids))  # COCO's evaluation sorts them
    precision = evaluation.eval["precision"]  # [IoUs, recall, classes, areas, detections]
    precision = np.where(precision < 0, np.nan, precision)[:, :, order]
    ap = precision[:, :, :, 0, 0].mean(axis=(0, 1))  # of 100 detections; all others of 1,000
    precision = precision[..., -1]
    shown = [int(np.isclose(evaluation.params.iouThrs, iou).argmax()) for iou in IOUS]
    curves = precision[shown, :, :, 0]
    by_area = precision[..., 1:].mean(axis=(0, 1)).T  # small, medium, large
    figures = np.stack([ap, *curves.mean(axis=1), *by_area], axis=1)
    return PrecisionRecall(annotations.names, evaluation.params.recThrs, curves, figures)


def as_json(
    matrix: np.ndarray, curves: PrecisionRecall, *, score_thr: float, tp_iou_thr: float
) -> dict[str, Any]:
    """All numbers of the figures; AP and precision are None where there are no objects."""
    by_iou = {}
    for index, (iou, mean) in enumerate(zip(IOUS, curves.means()[1:])):
        classes = {}
        for name, values in zip(curves.names, curves.precision[index].T):
            precision = None if np.isnan(values).any() else values.round(6).tolist()
            classes[name] = {"ap": _rounded(values.mean()), "precision": precision}
        by_iou[str(iou)] = {"ap": _rounded(mean), "classes": classes}
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
