"""One-stage detectors with mmdet's common decoding: RetinaNet, FCOS, ATSS, RTMDet and others.

Equals `BaseDenseHead.predict_by_feat` of mmdet 3.3.0 without its sizes that depend on the scores:
candidates at or below the threshold are dropped after the selection of the best `nms_pre`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator
from torch import Tensor, nn

from ropevit_mmdet.deploy.heads.nms import batched_nms, detections, unsupported_nms

DECODING = ("predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
SUPPORTED = (AnchorGenerator, MlvlPointGenerator, DeltaXYWHBBoxCoder, DistancePointBBoxCoder)


class Candidates(NamedTuple):
    """The best (prior, class) pairs of every level, each [B, N], and their boxes [B, N, 4]."""

    boxes: Tensor
    scores: Tensor  # of the class
    labels: Tensor
    levels: Tensor
    factors: Tensor | None  # centerness


class DenseGraph(nn.Module):
    """From a detector's feature maps to `dets` [B, K, 5] and `labels` [B, K]."""

    outputs = ("dets", "labels")
    score_thr: Tensor  # [1], a buffer: the file has it under that name

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head, self.test_cfg = model.bbox_head, model.bbox_head.test_cfg
        self.register_buffer("score_thr", torch.tensor([float(self.test_cfg.get("score_thr", 0))]))

    def forward(
        self, maps: tuple[Tensor, ...], size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Takes the maps of images of `size` (height, width), to which boxes are clipped."""
        cfg = self.test_cfg
        boxes, scores, labels, _, factors = candidates(self.head, maps, cfg.nms_pre, size)
        valid = scores > self.score_thr
        if factors is not None:
            scores = scores * factors
        valid = valid & is_large(boxes, cfg)
        return detections(boxes, scores, labels, batched_nms(boxes, scores, labels, valid, cfg))

    @staticmethod
    def unsupported(model: Any) -> list[str] | None:
        """Returns unsupported settings; None for detectors that predict in another way."""
        head = getattr(model, "bbox_head", None)
        own = (
            isinstance(model, SingleStageDetector)
            and isinstance(head, BaseDenseHead)
            and type(model).predict is SingleStageDetector.predict
            and all(getattr(type(head), name) is getattr(BaseDenseHead, name) for name in DECODING)
        )
        return unsupported_head(head, "test_cfg") if own else None


def candidates(
    head: Any, maps: tuple[Tensor, ...], nms_pre: int, size: tuple[int, int]
) -> Candidates:
    """Returns the best `nms_pre` (prior, class) pairs of every level, with decoded boxes."""
    outputs = list(zip(*head(maps)))  # per level: scores, deltas and perhaps factors
    first, sizes = outputs[0][0], [level[0].shape[-2:] for level in outputs]
    priors = head.prior_generator.grid_priors(sizes, dtype=first.dtype, device=first.device)
    levels = [_best(head, *level, nms_pre=nms_pre, priors=p) for level, p in zip(outputs, priors)]
    scores, labels, deltas, chosen, *factors = (torch.cat(part, dim=1) for part in zip(*levels))
    boxes = head.bbox_coder.decode(chosen.flatten(0, 1), deltas.flatten(0, 1), max_shape=size)
    ids = torch.cat([torch.full_like(level[1], i) for i, level in enumerate(levels)], dim=1)
    boxes = boxes.unflatten(0, (scores.shape[0], -1))
    return Candidates(boxes, scores, labels, ids, factors[0] if factors else None)


def is_large(boxes: Tensor, cfg: Any) -> Tensor:
    """Whether a box has the width and height that a `test_cfg` asks for; the shape without 4."""
    if cfg.get("min_bbox_size", -1) < 0:
        return torch.ones_like(boxes[..., 0], dtype=torch.bool)
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def unsupported_head(head: Any, name: str) -> list[str]:
    """Returns the parts and settings of a dense head that `candidates` and NMS do not support."""
    cfg = head.test_cfg
    parts = [head.prior_generator, head.bbox_coder]
    findings = [type(part).__name__ for part in parts if type(part) not in SUPPORTED]
    if getattr(head.loss_cls, "custom_cls_channels", False):
        findings.append(type(head.loss_cls).__name__)
    if cfg.get("nms_pre", -1) <= 0:
        findings.append(f"{name}.nms_pre={cfg.get('nms_pre')}")
    return findings + unsupported_nms(cfg, name)


def _best(
    head: Any, logits: Tensor, deltas: Tensor, *factors: Tensor, nms_pre: int, priors: Tensor
) -> tuple[Tensor, ...]:
    """Scores and labels [B, n], deltas [B, n, 4], priors [B, n, 2 or 4], factors [B, n].

    Shapes: [B, anchors * classes, rows, columns], [B, anchors * 4, rows, columns], and factors
    [B, anchors, rows, columns].
    """
    classes = head.cls_out_channels
    scores = _last(logits, classes)
    if head.use_sigmoid_cls:
        scores = scores.sigmoid()
    else:  # the last class is the background
        scores, classes = scores.softmax(-1)[..., :-1], classes - 1
    scores = scores.flatten(1)
    best, indices = scores.topk(torch.sym_min(int(nms_pre), scores.shape[1]))
    prior = indices // classes
    deltas = _last(deltas, 4).gather(1, prior[..., None].expand(-1, -1, 4))
    factors = tuple(_last(f, 1)[..., 0].sigmoid().gather(1, prior) for f in factors)
    return best, indices % classes, deltas, priors[prior], *factors


def _last(level: Tensor, channels: int) -> Tensor:
    """[B, anchors * channels, rows, columns] -> [B, rows * columns * anchors, channels]."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)
