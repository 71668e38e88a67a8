"""Layers of RoPE ViTs."""

from ropevit_mmdet.models.layers.block import Attention, Block, DropPath
from ropevit_mmdet.models.layers.mlp import Mlp, SwiGLU
from ropevit_mmdet.models.layers.norm import LayerNorm2d, LayerScale
from ropevit_mmdet.models.layers.patch_embed import PatchEmbed, resample_patch_kernel
from ropevit_mmdet.models.layers.rope import Rope, RopeTables, Segment, apply_rope

__all__ = [
    "Attention",
    "Block",
    "DropPath",
    "LayerNorm2d",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "Rope",
    "RopeTables",
    "Segment",
    "SwiGLU",
    "apply_rope",
    "resample_patch_kernel",
]
