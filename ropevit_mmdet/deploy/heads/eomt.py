"""EoMT: instances of queries that pass the last blocks of the backbone.

Equals `MaskFormerFusionHead.instance_postprocess` of mmdet 3.3.0, best instances first; regions of
stuff are not detected.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ropevit_mmdet.deploy.features import DynamicFeatures, resample
from ropevit_mmdet.models.dense_heads.eomt_head import LastBlocks
from ropevit_mmdet.models.detectors.eomt import EoMT
from ropevit_mmdet.models.layers.windows import WindowGroup


class EoMTFeatures(DynamicFeatures):
    """`EoMT.last_blocks`, with one window: patches in the order of the grid."""

    def __init__(self, model: EoMT) -> None:
        super().__init__(model)
        self.num_blocks = model.panoptic_head.num_blocks

    def forward(self, images: Tensor) -> LastBlocks:  # type: ignore[override]
        """Takes normalized images [B, 3, H, W]."""
        first = len(self.backbone.blocks) - self.num_blocks
        (tokens,), grid, segment = self.encode(images, (first - 1,))
        blocks: Any = list(self.backbone.blocks)[first:]
        groups = (WindowGroup(0, 0, 1, 1, *grid),)
        return LastBlocks(blocks, self.backbone.norm, tokens, segment, groups)


class EoMTGraph(nn.Module):
    """From tokens to `dets` [B, K, 5], `labels` [B, K] and `masks` [B, K, H, W], bool."""

    features = EoMTFeatures
    outputs = ("dets", "labels", "masks")

    def __init__(self, model: Any, *, pasted: bool = True) -> None:
        super().__init__()
        self.head, self.test_cfg = model.panoptic_head, model.panoptic_fusion_head.test_cfg

    def forward(
        self, x: LastBlocks, size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Takes tokens of images of `size` (height, width)."""
        classes, masks = (outputs[-1] for outputs in self.head(x))
        scores = classes.softmax(-1)[..., :-1].flatten(1)
        most = min(int(self.test_cfg.get("max_per_image", 100)), scores.shape[1])
        scores, indices = scores.topk(most)
        labels, queries = indices % self.head.num_classes, indices // self.head.num_classes
        queries = queries[..., None, None].expand(-1, -1, masks.shape[2], masks.shape[3])
        scale = Fraction(self.head.patch_size, 2 ** len(self.head.upscale))
        logits = resample(masks.gather(1, queries), scale)[..., : size[0], : size[1]]
        masks = logits > 0
        inside = masks.to(logits.dtype)
        quality = (logits.sigmoid() * inside).sum(dim=(2, 3)) / (inside.sum(dim=(2, 3)) + 1e-6)
        is_thing = labels < self.head.num_things_classes
        scores = torch.where(is_thing, scores * quality, torch.full_like(scores, -1.0))
        scores, order = scores.topk(most)  # best first
        labels, is_thing = labels.gather(1, order), is_thing.gather(1, order)
        masks = masks.gather(1, order[..., None, None].expand_as(masks))
        masks = masks & is_thing[..., None, None]
        dets = torch.cat((_boxes(masks), scores.clamp(min=0)[..., None]), dim=2)
        return dets, torch.where(is_thing, labels, torch.full_like(labels, -1)), masks

    @staticmethod
    def unsupported(model: Any) -> list[str] | None:
        """Returns unsupported settings; None for detectors other than EoMT."""
        if type(model) is not EoMT:
            return None
        is_on = model.panoptic_fusion_head.test_cfg.get("instance_on", False)
        return [] if is_on else ["test_cfg.instance_on=False"]


def _boxes(masks: Tensor) -> Tensor:
    """mmdet's `mask2bbox`: boxes [B, K, 4] around masks [B, K, H, W], 0 of empty ones."""
    sides = []
    for axis in (2, 3):  # x, y
        found = masks.any(dim=axis).long()  # [B, K, width or height]
        place = torch.arange(1, found.shape[2] + 1, device=masks.device)
        last = (found * place).amax(dim=2)
        first = found.shape[2] - (found * place.flip(0)).amax(dim=2)
        sides.append((torch.where(last > 0, first, last), last))
    (left, right), (top, bottom) = sides
    return torch.stack((left, top, right, bottom), dim=2).float()
