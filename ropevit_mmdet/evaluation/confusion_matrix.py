"""Pairs of detections and objects, and the confusion matrix of a detector."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet.evaluation.annotations import Annotations, Boxes
from ropevit_mmdet.evaluation.result_file import Detections


class ImagePairs(NamedTuple):
    """The M objects of an image, its N detections of sufficient score, and which are pairs."""

    image_id: Any
    objects: Boxes
    detections: Detections
    ious: np.ndarray  # [N, M]; 0 with crowd regions
    of_det: np.ndarray  # index of the object of each detection, -1 for none
    false: np.ndarray  # indices of detections without an object, also without a crowd region
    missed: np.ndarray  # indices of objects without a detection


def pair_objects(
    detections: Mapping[Hashable, Detections],
    annotations: Annotations,
    *,
    score_thr: float = 0.3,
    tp_iou_thr: float = 0.5,
) -> Iterator[ImagePairs]:
    """Pairs the objects and detections of each image.

    Each object and each detection is in one pair at most, first those of the same class, then by
    IoU.

    Args:
        detections: By image id, as of `Annotations.match`.
        annotations: Ground truth.
        score_thr: Minimum score of a detection.
        tp_iou_thr: Minimum IoU of a pair.
    """
    for image_id in annotations.image_ids:
        objects = boxes, labels, crowd = annotations.of(image_id)
        of_image = detections.get(image_id, Detections())
        of_image = of_image.select(np.flatnonzero(of_image.scores >= score_thr).tolist())
        ious = np.zeros((len(of_image.boxes), len(boxes)))
        if ious.size:
            ious = rle.iou(of_image.boxes, boxes, crowd.astype(np.uint8))
        in_crowd = (ious[:, crowd] >= tp_iou_thr).any(axis=1)
        ious = np.where(crowd, 0.0, ious)
        of_det = _pairs(ious, of_image.labels, labels, tp_iou_thr)
        false = np.flatnonzero((of_det < 0) & ~in_crowd)
        missed = np.setdiff1d(np.flatnonzero(~crowd), of_det)
        yield ImagePairs(image_id, objects, of_image, ious, of_det, false, missed)


def confusion_matrix(pairs: Iterable[ImagePairs], num_classes: int) -> np.ndarray:
    """Counts how often an object of class i (rows) was detected as class j (columns).

    Rows add up to objects, columns to detections. Unpaired detections in a crowd region do not
    count.

    Returns:
        [classes + 1, classes + 1], int64. The last row counts detections without an object, the
        last column objects without a detection.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for one in pairs:
        (_, labels, _), det_labels = one.objects, one.detections.labels
        paired = one.of_det >= 0
        np.add.at(matrix, (labels[one.of_det[paired]], det_labels[paired]), 1)
        np.add.at(matrix[num_classes], det_labels[one.false], 1)
        np.add.at(matrix[:, num_classes], labels[one.missed], 1)
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
