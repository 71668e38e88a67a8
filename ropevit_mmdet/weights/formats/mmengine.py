"""mmengine's checkpoints: a detector with our backbone, or the weights of that backbone only."""

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor


def matches(weights: Container[str]) -> bool:
    """Whether weights have our names, with either stem."""
    stems = ("patch_embed.proj.weight", "patch_embed.proj.0.weight")
    return "blocks.0.norm1.weight" in weights and any(stem in weights for stem in stems)


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`."""
    return dict(origin="mmengine", state=dict(weights), head={}, meta=metadata.get("meta"))
