"""Constructors of optimizer wrappers registered with mmdet."""

from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay

__all__ = ["RoPEViTLayerDecay"]
