"""RetinaNet with decoding and NMS, in a form whose graph holds for every height and width.

What `RetinaHead.predict_by_feat` of mmdet 3.3.0 does with a single image, in the same order,
without its data-dependent sizes: scores that do not reach the threshold are kept until after NMS,
at the very end of the ranking, where they can suppress nothing.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.detectors import RetinaNet
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor, nn

from ropevit_mmdet.deploy.features import DynamicFeatures, pad_to_multiple

_HEAD_PARTS = {"prior_generator": AnchorGenerator, "bbox_coder": DeltaXYWHBBoxCoder}


class Detections(NamedTuple):
    """Of one image, best first: boxes [N, 4] (x1, y1, x2, y2) in pixels, scores, labels [N]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DynamicDetector(nn.Module):
    """A RetinaNet from a normalised image to its detections.

    Holds the detector's own modules. `score_thr` is a buffer, so that it stands in the file under
    that name. Raises ValueError for a detector that is none, or whose `test_cfg` asks for something
    that has no counterpart in the graph.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_detector(model)
        self.features = DynamicFeatures(model)
        self.head = model.bbox_head
        self.pad_size_divisor = int(model.data_preprocessor.pad_size_divisor)
        self.pad_value = float(model.data_preprocessor.pad_value)
        cfg = model.bbox_head.test_cfg
        self.nms_pre, self.max_per_img = int(cfg.nms_pre), int(cfg.max_per_img)
        self.filters_sizes = cfg.get("min_bbox_size", -1) >= 0
        self.class_agnostic = bool(cfg.nms.get("class_agnostic", False))
        self.iou_threshold = _float32(cfg.nms.iou_threshold)
        self.register_buffer("score_thr", torch.tensor(float(cfg.get("score_thr", 0))))

    def forward(self, image: Tensor) -> Detections:
        """An image [1, 3, H, W] of any size, normalised and not padded; boxes in its pixels."""
        size = tuple(image.shape[-2:])
        padded = pad_to_multiple(image, self.pad_size_divisor, self.pad_value)
        logits, deltas = self.head(self.features(padded))
        priors = self.head.prior_generator.grid_priors(
            [level.shape[-2:] for level in logits], dtype=logits[0].dtype, device=image.device
        )
        levels = [self._candidates(*level) for level in zip(logits, deltas, priors)]
        scores, labels, deltas, priors = (torch.cat(parts) for parts in zip(*levels))
        boxes = self._clipped(self.head.bbox_coder.decode(priors, deltas), size)
        return self._without_overlaps(boxes, scores, labels)

    def _candidates(self, logits: Tensor, deltas: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
        """The best `nms_pre` pairs of anchor and class of a level: scores, labels, deltas, priors.

        Args:
            logits: [1, anchors * classes, rows, columns].
            deltas: [1, anchors * 4, rows, columns].
            priors: [rows * columns * anchors, 4].
        """
        classes = self.head.cls_out_channels
        scores = logits[0].permute(1, 2, 0).reshape(-1, classes)
        if self.head.use_sigmoid_cls:
            scores = scores.sigmoid()
        else:  # the last class is the background
            scores, classes = scores.softmax(-1)[:, :-1], classes - 1
        scores = scores.flatten()
        best, indices = scores.topk(torch.sym_min(self.nms_pre, scores.shape[0]))
        anchors = indices // classes
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        return best, indices % classes, deltas[anchors], priors[anchors]

    def _clipped(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.head.bbox_coder.clip_border:
            return boxes
        height, width = (torch.full((1,), side, dtype=boxes.dtype) for side in size)
        limit = torch.cat((width, height, width, height)).to(boxes.device)
        return torch.minimum(boxes.clamp(min=0), limit)

    def _without_overlaps(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        valid = scores > self.score_thr
        if self.filters_sizes:
            valid = valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        shifted = boxes
        if not self.class_agnostic:  # classes are moved apart, by mmcv's own distance
            reach = torch.where(valid[:, None], boxes, torch.zeros_like(boxes)).max() + 1
            shifted = boxes + (labels.to(boxes.dtype) * reach)[:, None]
        ranked = torch.where(valid, scores, torch.full_like(scores, -1.0))
        kept = torch.ops.torchvision.nms(shifted, ranked, self.iou_threshold)[: self.max_per_img]
        kept = kept[valid[kept]]
        return Detections(boxes[kept], scores[kept], labels[kept])


def check_detector(model: nn.Module) -> None:
    """Raise ValueError, saying what can be exported, for a detector that cannot be as a whole."""
    way_out = "its backbone and neck can be exported: --part features"
    if type(model) is not RetinaNet or type(model.bbox_head) is not RetinaHead:
        head = type(getattr(model, "bbox_head", None) or getattr(model, "roi_head", None)).__name__
        raise ValueError(
            f"{type(model).__name__} with a {head} cannot be exported whole, only RetinaNet with a "
            f"RetinaHead; {way_out}"
        )
    head = model.bbox_head
    for name, kind in _HEAD_PARTS.items():
        if type(getattr(head, name)) is not kind:
            raise ValueError(
                f"the {name} {type(getattr(head, name)).__name__} cannot be exported, only "
                f"{kind.__name__}; {way_out}"
            )
    if getattr(head.loss_cls, "custom_cls_channels", False):
        raise ValueError(f"scores of {type(head.loss_cls).__name__} cannot be exported; {way_out}")
    _check_test_cfg(head.test_cfg or {})


def _check_test_cfg(cfg: dict) -> None:
    nms = dict(cfg.get("nms") or {})
    if nms.pop("type", "nms") != "nms" or "iou_threshold" not in nms:
        raise ValueError(
            f"test_cfg.nms is {cfg.get('nms')}: only type='nms' with an iou_threshold can be "
            "exported"
        )
    unknown = set(nms) - {"iou_threshold", "class_agnostic", "split_thr"}
    if unknown:
        raise ValueError(f"test_cfg.nms: {', '.join(sorted(unknown))} cannot be exported")
    for name in ("nms_pre", "max_per_img"):
        if cfg.get(name, -1) < 1:
            raise ValueError(f"test_cfg.{name} must be 1 or more, got {cfg.get(name)}")
    if cfg.get("min_bbox_size", -1) > 0:
        raise ValueError(
            f"test_cfg.min_bbox_size {cfg['min_bbox_size']} is in pixels of the image before it "
            "was resized, which the file does not see: only 0 can be exported"
        )


def _float32(value: float) -> float:
    """As mmcv's kernels and ONNX take thresholds."""
    return struct.unpack("f", struct.pack("f", value))[0]
