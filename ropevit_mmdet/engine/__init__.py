"""Hooks, optimizers and strategies of training, and what surrounds a run."""

from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.engine.hooks import (
    NonFiniteGuard,
    PreemptionHook,
    ResumableCheckpointHook,
    RoPEViTChecks,
    latest_checkpoint,
)
from ropevit_mmdet.engine.optimizers import RoPEViTLayerDecay
from ropevit_mmdet.engine.strategies import BlockFSDPStrategy, wrap_blocks

__all__ = [
    "BlockFSDPStrategy",
    "NonFiniteGuard",
    "PreemptionHook",
    "ResumableCheckpointHook",
    "RoPEViTChecks",
    "RoPEViTLayerDecay",
    "float32_decoding",
    "latest_checkpoint",
    "wrap_blocks",
]
