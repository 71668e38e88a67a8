"""EoMT: a RoPE ViT that segments, without neck and decoder (arXiv 2503.19108)."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import MaskFormer
from mmdet.registry import MODELS
from torch import Tensor

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.dense_heads.eomt_head import LastBlocks
from ropevit_mmdet.weights.architectures import check_values


@MODELS.register_module()
class EoMT(MaskFormer):
    """mmdet's MaskFormer whose queries pass the last blocks of the backbone.

    The blocks before them may be windowed; the last `num_blocks` of the head attend globally.

    Args:
        backbone: a `RoPEViT`.
        panoptic_head: an `EoMTHead`, also for instances.
        panoptic_fusion_head: `MaskFormerFusionHead`.
        kwargs: as for MaskFormer, without `neck`.

    Raises:
        UserError: backbone and head do not fit each other, with their values.
    """

    def __init__(self, backbone: Any, panoptic_head: Any, **kwargs: Any) -> None:
        super().__init__(backbone=backbone, panoptic_head=panoptic_head, **kwargs)
        name, head = type(self.backbone).__name__, self.panoptic_head
        check_values(
            (isinstance(self.backbone, RoPEViT), "backbone", "RoPEViT (with frozen_stages)", name),
            (not self.with_neck, "neck", "None: EoMT reads tokens", kwargs.get("neck")),
        )
        dim, patch = self.backbone.arch.hidden_dim, self.backbone.patch_size
        depth, blocks = len(self.backbone.blocks), head.num_blocks
        check_values(
            (head.in_channels == dim, "panoptic_head.in_channels", str(dim), head.in_channels),
            (head.patch_size == patch, "panoptic_head.patch_size", str(patch), head.patch_size),
            (0 < blocks < depth, "panoptic_head.num_blocks", f"1 to {depth - 1}", blocks),
        )

    def last_blocks(self, images: Tensor) -> LastBlocks:
        """Runs the blocks before the last `num_blocks` on normalized images [B, 3, H, W]."""
        first = len(self.backbone.blocks) - self.panoptic_head.num_blocks
        (tokens,), (segment,), groups = self.backbone.encode(images, (first - 1,))
        blocks = list(self.backbone.blocks)[first:]
        return LastBlocks(blocks, self.backbone.norm, tokens, segment, groups)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses of every prediction."""
        return self.panoptic_head.loss(self.last_blocks(batch_inputs), batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        """Data samples with `pred_instances`, `pred_panoptic_seg` or both, by `test_cfg`."""
        outputs = self.panoptic_head.predict(self.last_blocks(batch_inputs), batch_data_samples)
        results = self.panoptic_fusion_head.predict(*outputs, batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> tuple:
        """Class and mask logits, as for `EoMTHead.forward`."""
        return self.panoptic_head(self.last_blocks(batch_inputs))
