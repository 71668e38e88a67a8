"""Box operators of the fallback: nms, soft-nms, nms_match.

The order of the results is that of mmcv's CPU kernels (`mmcv/ops/csrc/pytorch/cpu/nms.cpp`); equal
scores keep the order of the input, where mmcv's depends on PyTorch's unstable sort. Boxes are
(x1, y1, x2, y2) in pixels; with `offset` 1 a width is x2 - x1 + 1.
"""

import struct

import numpy as np
import torch
from torch import Tensor

from ropevit_mmdet.compat.ops._kernels import torchvision_ops, working_dtype

SCORE = 5  # row of the table that soft-nms works on
LINEAR, GAUSSIAN = 1, 2  # soft-nms methods; 0 drops what overlaps, as plain nms does


def nms(boxes, scores, iou_threshold, offset=0) -> Tensor:
    """Returns the indices of the boxes kept, best score first, ties in the order of the input.

    Shapes: boxes [N, 4], scores [N] -> [kept], int64. A box is suppressed if its IoU with a kept
    one is *above* the threshold. Half precision is computed in float32.
    """
    dtype = working_dtype(torch.promote_types(boxes.dtype, scores.dtype))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torchvision_ops().nms(boxes, scores, _round_to(dtype, iou_threshold))


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset) -> Tensor:
    """Soft-NMS (Bodla et al., arXiv 1704.04503): fills `dets`, returns indices, best score first.

    Shapes: boxes [N, 4], scores [N], dets [N, 5] (the first `kept` rows are written) -> [kept],
    int64. As in mmcv's kernel, `min_score` drops boxes only after another has been picked, and the
    last box replaces a dropped one, which decides between equal scores.
    """
    dtype = working_dtype(boxes.dtype)
    threshold, minimum = (_round_to(dtype, value) for value in (iou_threshold, min_score))
    # Rows x1, y1, x2, y2, area, score. In numpy: each pick is a dozen small operations, each of
    # which takes several times as long in torch.
    boxes = boxes.to(dtype)
    area = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    table = torch.stack((*boxes.T, area, scores.to(dtype))).cpu().numpy()  # [6, N]
    order = np.arange(len(boxes))
    count, picked = len(order), 0
    while picked < count:
        best = picked + int(table[SCORE, picked:count].argmax())
        for values in (table, order):
            values[..., [picked, best]] = values[..., [best, picked]]
        rest = slice(picked + 1, count)
        overlap = _overlap_with_first(table[:, picked:count], offset)
        table[SCORE, rest] *= _decay(overlap, method, threshold, sigma)
        kept = ~(table[SCORE, rest] < minimum)
        if not kept.all():
            survivors = _fill_gaps(kept)
            for values in (table, order):
                values[..., rest][..., : len(survivors)] = values[..., rest][..., survivors]
            count = picked + 1 + len(survivors)
        picked += 1
    dets[:count] = torch.from_numpy(table[[0, 1, 2, 3, SCORE], :count].T)
    return torch.from_numpy(order[:count])


def nms_match(dets, iou_threshold) -> list[list[int]]:
    """Returns groups of indices: a box that nms keeps, then those it suppressed, best score first.

    Shape: dets [N, 5], the last column the score. A box is suppressed if its IoU *reaches*
    the threshold.
    """
    from torchvision.ops import box_iou

    dets = dets.to(working_dtype(dets.dtype))
    iou_threshold = _round_to(dets.dtype, iou_threshold)
    remaining = dets[:, 4].sort(stable=True, descending=True).indices
    groups = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        suppressed = box_iou(dets[best, None, :4], dets[others, :4])[0] >= iou_threshold
        groups.append([int(best), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups


def _overlap_with_first(table: np.ndarray, offset: int) -> np.ndarray:
    """IoU of the first column of a soft-nms table [6, N] with the others, [N - 1]."""
    x1, y1, x2, y2, area, _ = table
    width = np.minimum(x2[0], x2[1:]) - np.maximum(x1[0], x1[1:]) + offset
    height = np.minimum(y2[0], y2[1:]) - np.maximum(y1[0], y1[1:]) + offset
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return intersection / (area[0] + area[1:] - intersection)


def _decay(overlap: np.ndarray, method: int, threshold: float, sigma: float) -> np.ndarray:
    """Factors for the scores of boxes with that overlap."""
    if method == GAUSSIAN:
        return np.exp(-(overlap * overlap) / sigma)
    decay = np.ones_like(overlap)
    over = overlap >= threshold
    decay[over] = 1 - overlap[over] if method == LINEAR else 0
    return decay


def _fill_gaps(kept: np.ndarray) -> np.ndarray:
    """Indices of the kept ones; each gap takes the last one that is still after it."""
    count = int(kept.sum())
    slots = np.arange(count)
    slots[~kept[:count]] = count + np.flatnonzero(kept[count:])[::-1]
    return slots


def _round_to(dtype: torch.dtype, value: float) -> float:
    """mmcv's kernels round thresholds to float32, which decides ties: 0.6 grows a little."""
    return struct.unpack("f", struct.pack("f", value))[0] if dtype == torch.float32 else value
