"""Evaluation of detections: COCO's metrics, confusion matrix, precision over recall."""

from ropevit_mmdet.evaluation.annotations import Annotations, annotation_file
from ropevit_mmdet.evaluation.confusion_matrix import confusion_matrix
from ropevit_mmdet.evaluation.fast_coco_metric import FastCocoMetric
from ropevit_mmdet.evaluation.precision_recall import (
    IOUS,
    PrecisionRecall,
    as_json,
    precision_recall,
)
from ropevit_mmdet.evaluation.result_file import ImageResult, read_results

__all__ = [
    "Annotations",
    "FastCocoMetric",
    "IOUS",
    "ImageResult",
    "PrecisionRecall",
    "annotation_file",
    "as_json",
    "confusion_matrix",
    "precision_recall",
    "read_results",
]
