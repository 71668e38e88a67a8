"""Layers of RoPE ViTs."""

from ropevit_mmdet.models.layers.norm import LayerNorm2d

__all__ = ["LayerNorm2d"]
