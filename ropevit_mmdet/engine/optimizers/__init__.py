"""Constructors of optimizer wrappers and learning rate schedules registered with mmdet."""

from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay
from ropevit_mmdet.engine.optimizers.two_stage_warmup_poly_lr import TwoStageWarmupPolyLR

__all__ = ["RoPEViTLayerDecay", "TwoStageWarmupPolyLR"]
