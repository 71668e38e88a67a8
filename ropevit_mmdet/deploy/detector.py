"""RetinaNet with decoding and NMS as a graph for every image size.

Equals `RetinaHead.predict_by_feat` of mmdet 3.3.0 without its data-dependent sizes: scores below
the threshold stay until after NMS, ranked last, where they can suppress nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.detectors import RetinaNet
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor, nn

from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.deploy.features import DynamicFeatures, pad_to_multiple


class Detections(NamedTuple):
    """In one image, best first: boxes [N, 4] (x1, y1, x2, y2) in pixels, scores [N], labels [N]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DynamicDetector(nn.Module):
    """A RetinaNet from a normalized image to its detections; shares the detector's modules."""

    score_thr: Tensor  # a buffer, so that the file has it under that name

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = DynamicFeatures(model)
        self.head = model.bbox_head
        self.pad_size_divisor = int(model.data_preprocessor.pad_size_divisor)
        self.pad_value = float(model.data_preprocessor.pad_value)
        cfg = model.bbox_head.test_cfg
        self.nms_pre, self.max_per_img = int(cfg.nms_pre), int(cfg.max_per_img)
        self.removes_empty = cfg.get("min_bbox_size", -1) >= 0
        self.class_agnostic = bool(cfg.nms.get("class_agnostic", False))
        self.iou_threshold = float(np.float32(cfg.nms.iou_threshold))  # as in mmcv and ONNX
        self.register_buffer("score_thr", torch.tensor(float(cfg.get("score_thr", 0))))

    def forward(self, image: Tensor) -> Detections:
        """Takes an image [1, 3, H, W], normalized and not padded; boxes are in its pixels."""
        size = (image.shape[-2], image.shape[-1])
        padded = pad_to_multiple(image, self.pad_size_divisor, self.pad_value)
        logits, deltas = self.head(self.features(padded))
        priors = self.head.prior_generator.grid_priors(
            [level.shape[-2:] for level in logits], dtype=logits[0].dtype, device=image.device
        )
        levels = [self._candidates(*level) for level in zip(logits, deltas, priors)]
        scores, labels, deltas, priors = (torch.cat(parts) for parts in zip(*levels))
        boxes = self.head.bbox_coder.decode(priors, deltas, max_shape=size)
        return self._nms(boxes, scores, labels)

    def _candidates(self, logits: Tensor, deltas: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
        """Selects the best `nms_pre` (anchor, class) pairs of a level.

        Shapes: [1, anchors * classes, rows, columns], [1, anchors * 4, rows, columns], [n, 4].
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

    def _nms(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        valid = scores > self.score_thr
        if self.removes_empty:
            valid = valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        shifted = boxes
        if not self.class_agnostic:  # shift classes apart, by the same distance as mmcv
            distance = torch.where(valid[:, None], boxes, torch.zeros_like(boxes)).max() + 1
            shifted = boxes + (labels.to(boxes.dtype) * distance)[:, None]
        ranked = torch.where(valid, scores, torch.full_like(scores, -1.0))
        kept = torch.ops.torchvision.nms(shifted, ranked, self.iou_threshold)[: self.max_per_img]
        kept = kept[valid[kept]]
        return Detections(boxes[kept], scores[kept], labels[kept])


def unsupported_detector(model: Any) -> list[str]:
    """Returns the parts and settings of a detector that `DynamicDetector` does not support."""
    head: Any = getattr(model, "bbox_head", None)
    if type(model) is not RetinaNet or type(head) is not RetinaHead:
        return [f"{type(model).__name__} (only RetinaNet with RetinaHead)"]
    cfg, nms = head.test_cfg, dict(head.test_cfg.get("nms") or {})
    supported = {
        type(head.prior_generator).__name__: type(head.prior_generator) is AnchorGenerator,
        type(head.bbox_coder).__name__: type(head.bbox_coder) is DeltaXYWHBBoxCoder,
        f"test_cfg.nms={cfg.get('nms')}": type_name({"type": nms.pop("type", "nms")}) == "nms"
        and {"iou_threshold"} <= nms.keys() <= {"iou_threshold", "class_agnostic", "split_thr"},
        f"test_cfg.nms_pre={cfg.get('nms_pre')}": cfg.get("nms_pre", -1) > 0,
        f"test_cfg.max_per_img={cfg.get('max_per_img')}": cfg.get("max_per_img", -1) > 0,
        # of the image before it was resized
        f"test_cfg.min_bbox_size={cfg.get('min_bbox_size')}": cfg.get("min_bbox_size", -1) <= 0,
    }
    return [part for part, is_supported in supported.items() if not is_supported]
