"""Two-stage detectors: Faster, Mask and Cascade (Mask) R-CNN.

Equals `RPNHead`, `StandardRoIHead` and `CascadeRoIHead` of mmdet 3.3.0 with a fixed number of
proposals and detections per image; masks are computed for found detections only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, FCNMaskHead, SingleRoIExtractor, StandardRoIHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn

from ropevit_mmdet.deploy.heads.dense import candidates, is_large, unsupported_head
from ropevit_mmdet.deploy.heads.nms import batched_nms, detections, pick, unsupported_nms

PARTS = (RoIAlign, SingleRoIExtractor, FCNMaskHead, DeltaXYWHBBoxCoder)


class TwoStageGraph(nn.Module):
    """From feature maps to `dets` [B, K, 5], `labels` [B, K] and perhaps `masks`.

    Masks are [B, K, h, w], probabilities in the box, or [B, K, H, W], bool, pasted into the image.
    """

    score_thr: Tensor  # [1], a buffer: the file has it under that name

    def __init__(self, model: Any, *, pasted: bool = False) -> None:
        super().__init__()
        head = model.roi_head
        self.rpn_head, self.pasted, self.test_cfg = model.rpn_head, pasted, head.test_cfg
        self.box_stages: Any = _stages(head, "bbox")
        self.mask_stages: Any = _stages(head, "mask") if head.with_mask else nn.ModuleList()
        self.outputs = ("dets", "labels", *(["masks"] if head.with_mask else []))
        self.register_buffer("score_thr", torch.tensor([float(self.test_cfg.score_thr)]))

    def forward(
        self, maps: tuple[Tensor, ...], size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Takes the maps of images of `size` (height, width), to which boxes are clipped."""
        batch = maps[0].shape[0]
        proposals, is_proposal = self._proposals(maps, size)  # [B, P, 4], [B, P]
        image = torch.arange(batch, device=proposals.device)[:, None].expand_as(is_proposal)
        rois = torch.cat((image.flatten()[:, None].to(proposals.dtype), proposals.flatten(0, 1)), 1)
        boxes, scores = self._boxes(maps, rois, size)  # [B * P, C, 4], [B * P, C]
        classes = torch.arange(scores.shape[1], device=scores.device)
        labels = classes.expand_as(scores).reshape(batch, -1)
        boxes, scores = boxes.reshape(batch, -1, 4), scores.reshape(batch, -1)
        is_proposal = is_proposal[..., None].expand(-1, -1, len(classes)).flatten(1)
        valid = is_proposal & (scores > self.score_thr)
        kept = batched_nms(boxes, scores, labels, valid, self.test_cfg)
        dets, labels = detections(boxes, scores, labels, kept)
        if not self.mask_stages:
            return dets, labels
        return dets, labels, self._masks(maps, dets, labels, size)

    def _proposals(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        cfg = self.rpn_head.test_cfg
        boxes, scores, _, levels, _ = candidates(self.rpn_head, maps, cfg.nms_pre, size)
        kept = batched_nms(boxes, scores, levels, is_large(boxes, cfg), cfg)
        return pick(boxes, kept), kept >= 0

    def _boxes(
        self, maps: tuple[Tensor, ...], rois: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes [R, C, 4] and scores [R, C] of RoIs [R, 5]: each stage refines the last one's."""
        logits = []
        for i, (extractor, head) in enumerate(self.box_stages, start=1):
            stage_logits, deltas = head(extract(extractor, maps, rois))
            logits.append(stage_logits)
            if i < len(self.box_stages):
                label = stage_logits[:, :-1].argmax(dim=1)
                boxes = head.regress_by_class(rois[:, 1:], label, deltas, dict(img_shape=size))
                rois = torch.cat((rois[:, :1], boxes), dim=1)
        scores = (sum(logits) / float(len(logits))).softmax(-1)[:, :-1]
        deltas = deltas.unflatten(1, (-1, 4))  # one or one per class
        priors = rois[:, None, 1:].expand_as(deltas).flatten(0, 1)
        boxes = head.bbox_coder.decode(priors, deltas.flatten(0, 1), max_shape=size)
        return boxes.view_as(deltas).expand(-1, scores.shape[1], -1), scores

    def _masks(
        self, maps: tuple[Tensor, ...], dets: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Row 0 of each tensor is no detection, and is cut off: there may be no detections."""
        batch, most = labels.shape
        found = (labels.flatten() >= 0).nonzero()[:, 0]
        boxes, labels = dets[..., :4].flatten(0, 1)[found], labels.flatten()[found]
        rois = F.pad(torch.cat(((found // most).to(boxes.dtype)[:, None], boxes), 1), (0, 0, 1, 0))
        stages = [
            _of_class(head, head(extract(extractor, maps, rois)).sigmoid(), F.pad(labels, (1, 0)))
            for extractor, head in self.mask_stages
        ]
        masks = sum(stages[1:], stages[0]) / float(len(stages))  # [1 + D, h, w]
        if self.pasted:
            masks = paste(masks, rois[:, 1:], size) >= self.test_cfg.mask_thr_binary
        table = masks.new_zeros(1 + batch * most, masks.shape[1], masks.shape[2])
        table = table.index_put((F.pad(found + 1, (1, 0)),), masks)
        return table[1:].unflatten(0, (batch, most))

    @staticmethod
    def unsupported(model: Any) -> list[str] | None:
        """Returns unsupported parts and settings; None for other detectors."""
        head: Any = getattr(model, "roi_head", None)
        if (
            not isinstance(model, TwoStageDetector)
            or type(model).predict is not TwoStageDetector.predict
            or type(getattr(model, "rpn_head", None)) is not RPNHead
            or type(head) not in (StandardRoIHead, CascadeRoIHead)
        ):
            return None
        stages = [*_stages(head, "bbox"), *(_stages(head, "mask") if head.with_mask else ())]
        parts = [head.shared_head] if head.with_shared_head else []
        for extractor, box_or_mask in stages:
            is_plain = getattr(box_or_mask, "with_reg", True)
            if getattr(box_or_mask, "custom_cls_channels", False) or not is_plain:
                parts.append(box_or_mask)
            coder = getattr(box_or_mask, "bbox_coder", box_or_mask)
            parts += [extractor, *extractor.roi_layers, coder]
        findings = unsupported_head(model.rpn_head, "test_cfg.rpn")
        findings += unsupported_nms(head.test_cfg, "test_cfg.rcnn")
        types = dict.fromkeys(type(part) for part in parts)
        return findings + [one.__name__ for one in types if one not in PARTS]


def extract(extractor: Any, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """`SingleRoIExtractor.forward` for RoIs [R, 5]; every level has an empty RoI besides."""
    maps = maps[: extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(maps))
    rois = F.pad(rois, (0, 0, 1, 0))
    outputs, indices = [], []
    for i, (level, layer) in enumerate(zip(maps, extractor.roi_layers)):
        chosen = F.pad((levels == i).nonzero()[:, 0] + 1, (1, 0))
        settings = (layer.spatial_scale, *layer.output_size, layer.sampling_ratio, layer.aligned)
        outputs.append(torch.ops.torchvision.roi_align(level, rois[chosen], *settings))
        indices.append(chosen)
    table = outputs[0].new_zeros(rois.shape[0], *outputs[0].shape[1:])
    return table.index_put((torch.cat(indices),), torch.cat(outputs))[1:]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """mmdet's `_do_paste_mask`: masks [N, h, w] in boxes [N, 4] -> [N, *size], 0 outside."""
    grids = []
    for axis in (0, 1):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        centers = torch.arange(size[1 - axis], device=boxes.device).to(boxes.dtype) + 0.5
        position = (centers - low) / (high - low) * 2 - 1  # [N, width or height]
        grids.append(torch.where(position.abs() < float("inf"), position, 0.0))
    x, y = torch.broadcast_tensors(grids[0][:, None, :], grids[1][:, :, None])
    return F.grid_sample(masks[:, None], torch.stack((x, y), dim=3), align_corners=False)[:, 0]


def _stages(roi_head: Any, part: str) -> Any:
    """Pairs of RoI extractor and head, one per stage."""
    extractors, heads = (getattr(roi_head, f"{part}_{name}") for name in ("roi_extractor", "head"))
    if not isinstance(heads, nn.ModuleList):
        extractors, heads = [extractors], [heads]
    return nn.ModuleList(nn.ModuleList(pair) for pair in zip(extractors, heads))


def _of_class(head: Any, masks: Tensor, labels: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, h, w], the masks of `labels` [N]."""
    if head.class_agnostic:
        return masks[:, 0]
    index = labels[:, None, None, None].expand(-1, -1, masks.shape[2], masks.shape[3])
    return masks.gather(1, index)[:, 0]
