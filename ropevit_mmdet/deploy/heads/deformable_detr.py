"""DINO and Deformable DETR: the detector's own functions, with sizes that stay in the graph.

Equals mmdet 3.3.0 with a mask of the padding for every image; mmdet leaves it out without padding.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads.detr_head import DETRHead
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ropevit_mmdet.compat.ops.multi_scale_deformable import mmcv_attention


class DeformableDETRGraph(nn.Module):
    """From feature maps to `dets` [B, K, 5] and `labels` [B, K], always K detections."""

    outputs = ("dets", "labels")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.test_cfg = model.bbox_head.test_cfg
        tensors = chain(model.parameters(), model.buffers())
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})  # shares them
        self.model.backbone = self.model.neck = None
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if type(child) is MultiScaleDeformableAttention:
                    setattr(module, name, DynamicAttention(child))

    def forward(
        self, maps: tuple[Tensor, ...], size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Takes the maps of images of `size` (height, width), padded to the size `padded`."""
        model, head = self.model, self.model.bbox_head
        encoder, decoder = self._pre_transformer(maps, size, padded)
        with _DynamicLinspace():
            queries, _ = model.pre_decoder(**model.forward_encoder(**encoder))
        logits, boxes = (part[-1] for part in head(**self._forward_decoder(**decoder, **queries)))
        scores, labels, chosen = self._best(logits)
        boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, chosen[..., None].expand(-1, -1, 4)))
        limits = torch.stack([torch.full_like(boxes[0, 0, 0], side) for side in (*size, *size)])
        boxes = torch.minimum((boxes * limits.flip(0)).clamp(min=0), limits.flip(0))
        return torch.cat((boxes, scores[..., None]), dim=2), labels

    def _pre_transformer(
        self, maps: tuple[Tensor, ...], size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's `pre_transformer`; `spatial_shapes` is a list of (rows, columns)."""
        masks = [_padding(level, size, padded) for level in maps]
        positions = [
            self.model.positional_encoding(mask).flatten(2).transpose(1, 2) + embed
            for mask, embed in zip(masks, self.model.level_embed)
        ]
        mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        sizes = dict(
            spatial_shapes=[(level.shape[2], level.shape[3]) for level in maps],
            level_start_index=None,
            valid_ratios=torch.stack([self.model.get_valid_ratio(mask) for mask in masks], dim=1),
        )
        feat = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        encoder = dict(feat=feat, feat_mask=mask, feat_pos=torch.cat(positions, dim=1), **sizes)
        return encoder, dict(memory_mask=mask, **sizes)

    def _forward_decoder(self, **inputs: Any) -> dict[str, Any]:
        """The model's `forward_decoder`; DINO's asks for `len(query)`, which fixes the batch."""
        if type(self.model) is not DINO:
            return self.model.forward_decoder(**inputs)
        states, references = self.model.decoder(
            value=inputs.pop("memory"),
            key_padding_mask=inputs.pop("memory_mask"),
            self_attn_mask=inputs.pop("dn_mask"),
            reg_branches=self.model.bbox_head.reg_branches,
            **inputs,
        )
        return dict(hidden_states=states, references=list(references))

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and queries of the best `max_per_img`, each [B, K]."""
        head = self.model.bbox_head
        most = int(self.test_cfg.get("max_per_img", logits.shape[1]))
        if head.loss_cls.use_sigmoid:
            scores, indices = logits.sigmoid().flatten(1).topk(most)
            return scores, indices % head.num_classes, indices // head.num_classes
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, chosen = scores.topk(most)
        return scores, labels.gather(1, chosen), chosen

    @staticmethod
    def unsupported(model: Any) -> list[str] | None:
        """Returns an unsupported head; None for detectors that are not mmdet's own."""
        if type(model) not in (DINO, DeformableDETR):
            return None
        head = type(model.bbox_head)
        own = head._predict_by_feat_single is DETRHead._predict_by_feat_single
        return [] if own else [head.__name__]


class DynamicAttention(nn.Module):
    """`MultiScaleDeformableAttention.forward` for sizes of levels that are a list."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        *,
        value: Tensor,
        query_pos: Tensor,
        key_padding_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **kwargs: Any,
    ) -> Tensor:
        """Takes queries [B, Q, C], values [B, N, C], reference points [B, Q, levels, 2 or 4]."""
        own, identity, query = self.attention, query, query + query_pos
        value = own.value_proj(value).masked_fill(key_padding_mask[..., None], 0.0)
        shape = (own.num_heads, own.num_levels, own.num_points)
        offsets = own.sampling_offsets(query).unflatten(2, (*shape, 2))
        weights = own.attention_weights(query).unflatten(2, (shape[0], -1)).softmax(-1)
        points = reference_points[:, :, None, :, None]  # [B, Q, 1, levels, 1, 2 or 4]
        if points.shape[-1] == 2:
            sides = [torch.full_like(query[0, 0, 0], side) for hw in spatial_shapes for side in hw]
            offsets = offsets / torch.stack(sides).view(-1, 1, 2).flip(2)
        else:
            offsets = offsets / own.num_points * points[..., 2:] * 0.5
        value, weights = value.unflatten(2, (shape[0], -1)), weights.unflatten(3, shape[1:])
        output = mmcv_attention(value, spatial_shapes, points[..., :2] + offsets, weights)
        return own.dropout(own.output_proj(output)) + identity


class _DynamicLinspace(TorchFunctionMode):
    """mmdet's `torch.linspace(first, last, cells)` has steps of 1, but fixes the cells."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            return torch.arange(args[2], **kwargs) + args[0]
        return func(*args, **(kwargs or {}))


def _padding(level: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """Which cells of a level are padding, [B, rows, columns], as `F.interpolate` selects them."""
    rows, columns = (
        torch.arange(cells, device=level.device) * whole // cells >= inside
        for cells, whole, inside in zip(level.shape[2:], padded, size)
    )
    return (rows[:, None] | columns).expand(level.shape[0], -1, -1)
