"""The confusion matrix of a detector."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.result_file import ImageResult


def confusion_matrix(
    results: Sequence[ImageResult],
    annotations: Annotations,
    *,
    score_thr: float = 0.3,
    tp_iou_thr: float = 0.5,
) -> np.ndarray:
    """Counts how often an object of class i (rows) was detected as class j (columns).

    Each object and each detection is in one pair at most, first those of the same class, then by
    IoU: rows add up to objects, columns to detections. Unpaired detections in a crowd region do not
    count.

    Args:
        results: Detections.
        annotations: Ground truth.
        score_thr: Minimum score of a detection.
        tp_iou_thr: Minimum IoU of a pair.

    Returns:
        [classes + 1, classes + 1], int64. The last row counts detections without an object, the
        last column objects without a detection.
    """
    detections = annotations.match(results)
    background = len(annotations.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    empty = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)
    for image_id in annotations.image_ids:
        boxes, labels, crowd = annotations.of(image_id)
        det_boxes, det_labels, scores = detections.get(image_id, empty)
        det_boxes, det_labels = det_boxes[scores >= score_thr], det_labels[scores >= score_thr]
        ious = np.zeros((len(det_boxes), len(boxes)))
        if ious.size:
            ious = rle.iou(det_boxes, boxes, crowd.astype(np.uint8))
        of_det = _pairs(np.where(crowd, 0.0, ious), det_labels, labels, tp_iou_thr)
        paired = of_det >= 0
        in_crowd = (ious[:, crowd] >= tp_iou_thr).any(axis=1)
        missed = np.setdiff1d(np.flatnonzero(~crowd), of_det)
        np.add.at(matrix, (labels[of_det[paired]], det_labels[paired]), 1)
        np.add.at(matrix[background], det_labels[~paired & ~in_crowd], 1)
        np.add.at(matrix[:, background], labels[missed], 1)
    return matrix


def _pairs(
    ious: np.ndarray, det_labels: np.ndarray, labels: np.ndarray, threshold: float
) -> np.ndarray:
    """Index of the object of each detection, -1 for none: [N] from IoUs [N, M]."""
    of_det = np.full(len(ious), -1)
    dets, objects = np.nonzero(ious >= threshold)
    differ = det_labels[dets] != labels[objects]
    order = np.lexsort((-ious[dets, objects], differ))
    for det, paired_object in zip(dets[order], objects[order]):
        if of_det[det] < 0 and paired_object not in of_det:
            of_det[det] = paired_object
    return of_det
