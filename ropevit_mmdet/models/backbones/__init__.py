"""Backbones."""

from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT

__all__ = ["FrozenBackbone", "RoPEViT"]
