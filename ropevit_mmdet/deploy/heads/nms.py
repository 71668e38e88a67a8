"""Non-maximum suppression of a batch as a graph: a fixed number of detections per image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ropevit_mmdet.compat.config import type_name


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, cfg: Any) -> Tensor:
    """Returns the candidates that mmdet keeps, [B, `max_per_img`], best first, then -1 for none.

    One NMS for all: groups (classes or levels) are shifted apart by the same distance as in mmcv,
    images only along y, by as little as their boxes allow, so that rounding decides no more.

    Args:
        boxes: [B, N, 4] in pixels.
        scores: [B, N].
        groups: [B, N]; boxes of different groups do not suppress each other.
        valid: [B, N], false for candidates that do not take part.
        cfg: mmdet's `nms` and `max_per_img`.
    """
    most = int(cfg.max_per_img)
    image, candidate = valid.nonzero().unbind(1)  # [M]
    inside = torch.where(valid[..., None], boxes, torch.zeros_like(boxes))
    largest = inside.amax(dim=(1, 2))  # [B]
    boxes, scores = boxes[image, candidate], scores[image, candidate]
    offset = torch.zeros_like(scores)
    if not cfg.nms.get("class_agnostic", False):
        offset = groups[image, candidate].to(boxes.dtype) * (largest[image] + 1)
    boxes = boxes + offset[:, None]
    down = image.to(boxes.dtype) * (largest.max() - inside.min() + 1) - offset
    boxes = boxes + torch.stack((torch.zeros_like(down), down), dim=1).repeat(1, 2)
    # two empty boxes of row 0, which is cut off: the graph may assume that two or more are kept
    boxes, scores = F.pad(boxes, (0, 0, 0, 2)), F.pad(scores, (0, 2), value=-1.0)
    row, candidate = F.pad(image + 1, (0, 2)), F.pad(candidate, (0, 2))
    threshold = float(np.float32(cfg.nms.iou_threshold))  # as in mmcv and ONNX
    kept = torch.ops.torchvision.nms(boxes, scores, threshold)  # best first
    row, candidate = row[kept], candidate[kept]
    rows = torch.arange(valid.shape[0] + 1, device=row.device)
    counts = (row[:, None] == rows).to(boxes.dtype).cumsum(0)  # TensorRT has none of integers
    rank = counts.gather(1, row[:, None])[:, 0].long() - 1
    table = torch.full_like(rows, -1)[:, None].repeat(1, most + 1)  # the last column is cut off
    table = table.flatten().scatter(0, row * (most + 1) + rank.clamp(max=most), candidate)
    return table.view(-1, most + 1)[1:, :most]


def pick(values: Tensor, indices: Tensor) -> Tensor:
    """Takes `values` [B, N] or [B, N, C] at `indices` [B, K]; rows of -1 become zeros."""
    taken = indices.clamp(min=0)
    if values.dim() == 3:
        taken = taken[..., None].expand(-1, -1, values.shape[2])
        indices = indices[..., None]
    values = values.gather(1, taken)
    return torch.where(indices >= 0, values, torch.zeros_like(values))


def detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns `dets` [B, K, 5] (x1, y1, x2, y2, score) and `labels` [B, K], -1 for none."""
    dets = torch.cat((pick(boxes, kept), pick(scores, kept)[..., None]), dim=2)
    return dets, torch.where(kept >= 0, pick(labels, kept), torch.full_like(kept, -1))


def unsupported_nms(cfg: Any, name: str) -> list[str]:
    """Returns the settings of a `test_cfg` that `batched_nms` does not support."""
    nms = dict(cfg.get("nms") or {})
    supported = {
        f"{name}.nms={cfg.get('nms')}": type_name({"type": nms.pop("type", "nms")}) == "nms"
        and {"iou_threshold"} <= nms.keys() <= {"iou_threshold", "class_agnostic", "split_thr"},
        f"{name}.max_per_img={cfg.get('max_per_img')}": cfg.get("max_per_img", -1) > 0,
        # of the image before it was resized
        f"{name}.min_bbox_size={cfg.get('min_bbox_size')}": cfg.get("min_bbox_size", -1) <= 0,
    }
    return [part for part, is_supported in supported.items() if not is_supported]
