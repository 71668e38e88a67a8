"""mmengine's checkpoints: a detector with our backbone, or the weights of that backbone only."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_ANCHOR = "blocks.0.norm1.weight"  # every RoPE ViT has it


def matches(weights: Iterable[str]) -> bool:
    """Whether a RoPE ViT under our names is among the weights."""
    return bool(prefixes(weights))


def prefixes(weights: Iterable[str]) -> list[str]:
    """The prefix of every RoPE ViT among the weights."""
    found = (key.removesuffix(_ANCHOR) for key in weights if key.endswith(_ANCHOR))
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`; the backbone's weights are under one prefix."""
    (prefix,) = prefixes(weights)
    return dict(
        origin="mmengine",
        state={k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)},
        meta=metadata.get("meta"),
    )
