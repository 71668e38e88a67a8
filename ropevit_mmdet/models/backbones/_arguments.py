"""The arguments of RoPEViT that have several spellings, as the numbers that they stand for.

Every function raises ValueError with the bad value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ropevit_mmdet.weights.architectures import Arch


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """``pretrain_img_size``, pixels, as (height, width)."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ValueError(f"pretrain_img_size must be an int or (height, width), got {size!r}")
    return pair


def block_indices(indices: int | Sequence[int] | None, arch: Arch) -> tuple[int, ...]:
    """``out_indices`` as block numbers from 0; None: the architecture's own, else the last one."""
    if indices is None:
        indices = arch.out_indices or (arch.num_layers - 1,)
    indices = (indices,) if isinstance(indices, int) else tuple(indices)
    resolved = tuple(i + arch.num_layers if i < 0 else i for i in indices)
    ordered = tuple(sorted(set(resolved)))
    if not resolved or resolved != ordered or resolved[0] < 0 or resolved[-1] >= arch.num_layers:
        raise ValueError(
            f"out_indices must be ascending block numbers below {arch.num_layers}, got {indices}"
        )
    return resolved


def global_indices(
    indices: Sequence[int] | None, window_size: int | None, arch: Arch
) -> tuple[int, ...]:
    """``global_attn_indices`` as block numbers; None: the last of each quarter of the blocks."""
    if indices is None:
        return tuple((i + 1) * arch.num_layers // 4 - 1 for i in range(4))
    if window_size is None:
        raise ValueError(f"global_attn_indices {tuple(indices)} without a window_size")
    if any(not 0 <= i < arch.num_layers for i in indices):
        raise ValueError(
            f"global_attn_indices must be block numbers below {arch.num_layers}, got {indices}"
        )
    return tuple(indices)


def drop_path_rates(arch: Arch, rate: float | None) -> list[float]:
    """Rates that grow linearly from 0 at the first block to ``rate`` at the last."""
    rate = arch.drop_path_rate if rate is None else rate
    if not 0 <= rate <= 1:
        raise ValueError(f"drop_path_rate must be 0 to 1, got {rate}")
    if arch.drop_path_uniform:
        return [rate] * arch.num_layers
    return torch.linspace(0, rate, arch.num_layers, device="cpu").tolist()
