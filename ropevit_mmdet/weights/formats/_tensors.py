"""What readers of formats do with names and tensors."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def renamed(
    weights: Mapping[str, Tensor], keys: Iterable[tuple[str, str]], ignored: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under our names, and those of `ignored` parts under their own.

    `keys` are regular expressions and their replacements, all of which are applied.
    """
    state, others = {}, {}
    for key, value in weights.items():
        if key.startswith(ignored):
            others[key] = value
            continue
        for pattern, replacement in keys:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state, others


def fuse_qkv(state: dict[str, Tensor]) -> None:
    """Concatenates the projections `q_proj`, `k_proj` and `v_proj`; keys may have no bias."""
    for block in {key.partition(".attn.")[0] for key in state if ".attn." in key}:
        for kind in ("weight", "bias"):
            q, k, v = names = [f"{block}.attn.{part}_proj.{kind}" for part in "qkv"]
            if kind == "bias" and q in state:
                state.setdefault(k, torch.zeros_like(state[q]))
            if all(name in state for name in names):
                state[f"{block}.attn.qkv.{kind}"] = torch.cat([state.pop(name) for name in names])


def square_size(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Pixels (height, width) that the position embedding shows, if its grid is a square."""
    if "pos_embed" not in state:
        return None
    registers = state["reg_tokens"].shape[1] if "reg_tokens" in state else 0
    patch = state["patch_embed.proj.weight"].shape[-1]
    for special in (0, registers + ("cls_token" in state)):
        patches = state["pos_embed"].shape[1] - special
        if math.isqrt(patches) ** 2 == patches:
            return (math.isqrt(patches) * patch,) * 2
    return None


def stats_of(mean: Any, std: Any) -> dict[str, tuple[float, ...]] | None:
    """`rgb_stats`; None if one is not given."""
    if not mean or not std:
        return None
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
