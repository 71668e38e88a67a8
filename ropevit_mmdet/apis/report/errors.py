"""The worst errors of a detector: false positives and missed objects, as thumbnails."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from pycocotools import mask as rle

from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.confusion_matrix import ImagePairs
from ropevit_mmdet.evaluation.result_file import Detections
from ropevit_mmdet.visualization.overlays import draw_sample

# Types of false positives as in TIDE, arXiv 2008.08115.
TYPES = ("other class", "duplicate", "localization", "background", "missed")
_LOCALIZED = 0.1  # minimum IoU of a detection that is only badly localized
_SIDE = 256  # pixels of a thumbnail, which shows at least 64 pixels of the image


class Mistake(NamedTuple):
    """A false positive; or a missed object, with the score of its best low detection."""

    type: str
    labels: list[int]  # of the detection, or missed object; and of the object of another class
    score: float
    box: np.ndarray  # x, y, width, height in pixels
    at: int  # index among the detections, or the objects, of the image
    pairs: ImagePairs


def find_mistakes(
    pairs: Iterable[ImagePairs],
    detections: Mapping[Any, Detections],
    *,
    score_thr: float,
    tp_iou_thr: float,
) -> list[Mistake]:
    """All false positives and missed objects; `detections` are those of any score."""
    mistakes = []
    for one in pairs:
        (boxes, labels, _), found = one.objects, one.detections
        for index, (label, of_det) in enumerate(zip(found.labels.tolist(), one.of_det)):
            both = [label] if of_det < 0 else [label, int(labels[of_det])]
            if index in one.false or both[-1] != label:
                iou = one.ious[index][labels == label].max(initial=0.0)
                name = "localization" if iou >= _LOCALIZED else "background"
                name = "duplicate" if iou >= tp_iou_thr else name
                name = "other class" if of_det >= 0 else name
                score, box = float(found.scores[index]), found.boxes[index]
                mistakes.append(Mistake(name, both, score, box, index, one))
        every = detections.get(one.image_id, Detections())
        for index in one.missed:
            ious = [*rle.iou(every.boxes, boxes[[index]], [0])] if len(every.boxes) else []
            low = (every.scores < score_thr) & (every.labels == labels[index])
            low &= np.reshape(ious, -1) >= tp_iou_thr
            score, both = float(every.scores[low].max(initial=0.0)), [int(labels[index])]
            mistakes.append(Mistake("missed", both, score, boxes[index], index, one))
    return mistakes


def worst(mistakes: Iterable[Mistake], number: int) -> list[Mistake]:
    """The false positives of highest score, or the largest missed objects: each class in turn."""
    ranks: Counter[int] = Counter()
    chosen = []
    for one in sorted(mistakes, key=_severity):
        ranks[one.labels[0]] += 1
        chosen.append((ranks[one.labels[0]], one))
    chosen = sorted(chosen, key=lambda pair: pair[0])[:number]
    return sorted((one for _, one in chosen), key=_severity)


def thumbnail(image: np.ndarray, mistake: Mistake, annotations: Annotations) -> np.ndarray:
    """Renders the region of a mistake: ground truth at the left, detections at the right.

    Next to a false positive are all objects, next to a missed object all detections.
    """
    (boxes, labels, _), found = mistake.pairs.objects, mistake.pairs.detections
    masks = annotations.masks(mistake.pairs.image_id)
    truth = Detections(boxes, labels, np.ones(len(boxes)), masks)
    if mistake.type == "missed":
        truth = truth.select([mistake.at])
    else:
        found = found.select([mistake.at])
    region = _region(mistake.box, image.shape)
    pixels = mmcv.imrescale(mmcv.imcrop(image, region - (0, 0, 1, 1)), (_SIDE, _SIDE))
    left, right = _instances(truth, region), _instances(found, region)
    del left.scores
    sample = DetDataSample(gt_instances=left, pred_instances=right)
    return draw_sample(pixels, sample, annotations.names, long_side=_SIDE)


def _severity(mistake: Mistake) -> float:
    """Smaller is worse."""
    return -mistake.box[2] * mistake.box[3] if mistake.type == "missed" else -mistake.score


def _region(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """x1, y1, x2, y2 in whole pixels: a square of twice the size of a box, within the image."""
    side, limits = max(2 * max(box[2:]), _SIDE / 4), np.array(shape[1::-1])
    low = np.clip(box[:2] + box[2:] / 2 - side / 2, 0, np.maximum(limits - side, 0)).astype(int)
    return np.concatenate((low, np.minimum(np.ceil(low + side), limits))).astype(int)


def _instances(found: Detections, region: np.ndarray) -> InstanceData:
    """The objects or detections that are in a region, in pixels of its thumbnail."""
    corners = np.concatenate((found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]), axis=1)
    outside = (corners[:, :2] >= region[2:]) | (corners[:, 2:] <= region[:2])
    kept = [index for index, one in enumerate(outside.tolist()) if not any(one)]
    boxes = (corners[kept] - np.tile(region[:2], 2)) * _SIDE / max(region[2:] - region[:2])
    found = found.select(kept)
    fields = dict(bboxes=boxes, labels=found.labels, scores=found.scores)
    instances = InstanceData(**{key: torch.tensor(value) for key, value in fields.items()})
    if found.masks:
        masks = [rle.decode(one) for one in found.masks]
        cropped = BitmapMasks(masks, *masks[0].shape).crop(region)
        instances.masks = cropped.rescale((_SIDE, _SIDE)).masks
    return instances
