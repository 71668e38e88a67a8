"""Weights as files: resolved, downloaded, verified, read and described."""

from ropevit_mmdet.weights.checkpoint import Checkpoint, read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.published import WEIGHTS

__all__ = ["WEIGHTS", "Checkpoint", "read_checkpoint", "resolve_weights"]
