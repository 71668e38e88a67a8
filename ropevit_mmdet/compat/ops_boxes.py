"""Box operators of the `mmcv._ext` stand-in: nms, soft-nms, nms_match, overlaps.

The order of what is returned, ties included, is that of mmcv 2.1.0's CPU kernels
(`mmcv/ops/csrc/pytorch/cpu/nms.cpp`). Boxes are (x1, y1, x2, y2) in pixels; `offset` 1 counts the
last pixel in, so that a width is x2 - x1 + 1.
"""

import struct

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor

SCORE = 5  # row of the table that soft-nms works on
LINEAR, GAUSSIAN = 1, 2  # soft-nms methods; 0 drops what overlaps, as plain nms does
IOU, IOF = 0, 1  # overlap modes: over the union, over the first box


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes kept, best score first, ties in the order of the input.

    Shapes: boxes [N, 4], scores [N] -> [kept], int64. A box goes when its IoU with a kept one is
    *above* the threshold. Half precision is computed in float32.
    """
    dtype = _working_dtype(torch.promote_types(boxes.dtype, scores.dtype))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torch.ops.torchvision.nms(boxes, scores, _round_to(dtype, iou_threshold))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., arXiv 1704.04503): fill `dets`, return the indices, best score first.

    Shapes: boxes [N, 4], scores [N], dets [N, 5] (the first `kept` rows are written) -> [kept],
    int64. As in mmcv's kernel, `min_score` drops boxes only once another has been picked, and the
    last box takes the place of a dropped one, which decides between equal scores.
    """
    dtype = _working_dtype(boxes.dtype)
    threshold, least = (_round_to(dtype, value) for value in (iou_threshold, min_score))
    # Rows x1, y1, x2, y2, area, score. In numpy: each pick is a dozen small operations, and torch
    # takes several times as long for a small one.
    boxes = boxes.to(dtype)
    area = _product(boxes[:, 2:] - boxes[:, :2] + offset)
    table = torch.stack((*boxes.T, area, scores.to(dtype))).cpu().numpy()  # [6, N]
    order = np.arange(len(boxes))
    count, picked = len(order), 0
    while picked < count:
        best = picked + _first_maximum(table[SCORE, picked:count])
        for values in (table, order):
            values[..., [picked, best]] = values[..., [best, picked]]
        rest = slice(picked + 1, count)
        overlap = _overlap_with_first(table[:, picked:count], offset)
        table[SCORE, rest] *= _decay(overlap, method, threshold, sigma)
        kept = ~(table[SCORE, rest] < least)
        if not kept.all():
            survivors = _close_ranks(kept)
            for values in (table, order):
                values[..., rest][..., : len(survivors)] = values[..., rest][..., survivors]
            count = picked + 1 + len(survivors)
        picked += 1
    dets[:count] = torch.from_numpy(table[[0, 1, 2, 3, SCORE], :count].T)
    return torch.from_numpy(order[:count])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices: each box that nms keeps, then those it suppressed, best score first.

    Shape: dets [N, 5], the last column the score. A box goes when its IoU *reaches* the threshold.
    """
    dets = dets.to(_working_dtype(dets.dtype))
    iou_threshold = _round_to(dets.dtype, iou_threshold)
    remaining = dets[:, 4].sort(stable=True, descending=True).indices
    groups = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        overlap = _overlap(dets[best, :4], dets[others, :4], IOU, 0)
        suppressed = overlap >= iou_threshold
        groups.append([int(best), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fill `ious`, [M, N] or if aligned [M], with overlaps of bboxes1 [M, 4] and bboxes2 [N, 4]."""
    dtype = _working_dtype(torch.promote_types(bboxes1.dtype, bboxes2.dtype))
    bboxes1, bboxes2 = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        bboxes1 = bboxes1[:, None]  # [M, 1, 4]
    ious.copy_(_overlap(bboxes1, bboxes2, mode, offset))


OPS = (nms, softnms, nms_match, bbox_overlaps)


def _overlap(first: Tensor, second: Tensor, mode: int, offset: int) -> Tensor:
    """IoU or IoF of boxes [..., 4] that broadcast against each other; 0 / 0 is nan, as in mmcv."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = _product((bottom_right - top_left + offset).clamp(min=0))
    area = _product(first[..., 2:] - first[..., :2] + offset)
    if mode == IOU:
        area = area + _product(second[..., 2:] - second[..., :2] + offset) - intersection
    return intersection / area


def _product(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def _overlap_with_first(table: np.ndarray, offset: int) -> np.ndarray:
    """IoU of the first column of a soft-nms table [6, N] with the others, [N - 1]."""
    x1, y1, x2, y2, area, _ = table
    width = np.minimum(x2[0], x2[1:]) - np.maximum(x1[0], x1[1:]) + offset
    height = np.minimum(y2[0], y2[1:]) - np.maximum(y1[0], y1[1:]) + offset
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return intersection / (area[0] + area[1:] - intersection)


def _decay(overlap: np.ndarray, method: int, threshold: float, sigma: float) -> np.ndarray:
    """What the scores of boxes with that overlap are multiplied by."""
    if method == GAUSSIAN:
        return np.exp(-(overlap * overlap) / sigma)
    decay = np.ones_like(overlap)
    over = overlap >= threshold
    decay[over] = 1 - overlap[over] if method == LINEAR else 0
    return decay


def _first_maximum(scores: np.ndarray) -> int:
    """Where a scan for more than scores[0] ends up: nan never wins, but keeps the first place."""
    if np.isnan(scores[0]):
        return 0
    return int(np.nanargmax(scores))


def _close_ranks(kept: np.ndarray) -> np.ndarray:
    """Indices of the kept ones, each hole filled with the last of those still behind it."""
    count = int(kept.sum())
    slots = np.arange(count)
    slots[~kept[:count]] = count + np.flatnonzero(kept[count:])[::-1]
    return slots


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _round_to(dtype: torch.dtype, value: float) -> float:
    """mmcv's kernels take thresholds as float32, where 0.6 is a little more than 0.6: ties tell."""
    return struct.unpack("f", struct.pack("f", value))[0] if dtype == torch.float32 else value
