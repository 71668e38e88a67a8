"""Between the grid of patches and windows, with the special tokens in and out.

A grid that windows do not divide ends in smaller windows: no filling patches, no masks. Windows of
one size form a group; there are at most four groups (inner, right edge, bottom edge, corner).

*Window order* is the order of patch tokens from the first block to the last: group by group,
window by window, row by row. Two layouts of an image's tokens, both [B, tokens, C]:

- merged: the S special tokens, then the N patches in window order;
- split: window by window, each with its own copy of the S special tokens in front.

Windowed plain-ViT detection: ViTDet, arXiv 2203.16527. Windows that meet the position tables they
were trained with: arXiv 2311.05613.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class WindowGroup(NamedTuple):
    """Equal windows that tile a rectangle of the grid; all numbers are patches or windows."""

    top: int  # patches
    left: int
    rows: int  # windows
    columns: int
    height: int  # patches of one window
    width: int

    @property
    def windows(self) -> int:
        return self.rows * self.columns

    @property
    def patches(self) -> int:
        """Patches of one window."""
        return self.height * self.width


def window_groups(grid: tuple[int, int], window: int | None) -> tuple[WindowGroup, ...]:
    """The windows of a grid of (rows, columns) patches; one window over all where it is None."""
    if window is None:
        return (WindowGroup(0, 0, 1, 1, *grid),)

    def runs(length: int) -> list[tuple[int, int, int]]:  # (start, windows, patches of a window)
        whole, rest = divmod(length, window)
        whole_run = [(0, whole, window)] if whole else []
        return whole_run + ([(whole * window, 1, rest)] if rest else [])

    return tuple(
        WindowGroup(top, left, rows, columns, height, width)
        for top, rows, height in runs(grid[0])
        for left, columns, width in runs(grid[1])
    )


def to_window_order(grid_map: Tensor, groups: tuple[WindowGroup, ...]) -> Tensor:
    """A map [B, rows, columns, C] as tokens [B, N, C] in window order."""
    batch, _, _, channels = grid_map.shape
    parts = []
    for g in groups:
        part = grid_map[:, g.top : g.top + g.rows * g.height, g.left : g.left + g.columns * g.width]
        part = part.reshape(batch, g.rows, g.height, g.columns, g.width, channels)
        part = part.permute(0, 1, 3, 2, 4, 5)  # [B, rows, columns, height, width, C]
        parts.append(part.reshape(batch, g.windows * g.patches, channels))
    return _join(parts)


def to_grid(tokens: Tensor, groups: tuple[WindowGroup, ...]) -> Tensor:
    """Tokens [B, N, C] in window order as a map [B, rows, columns, C]."""
    batch, _, channels = tokens.shape
    parts, start = [], 0
    for g in groups:
        size = g.windows * g.patches
        part = tokens[:, start : start + size]
        part = part.reshape(batch, g.rows, g.columns, g.height, g.width, channels)
        part = part.permute(0, 1, 3, 2, 4, 5)  # [B, rows, height, columns, width, C]
        parts.append(part.reshape(batch, g.rows * g.height, g.columns * g.width, channels))
        start += size
    bands = []  # groups come band by band, from the top; those of a band stand side by side
    for top in sorted({g.top for g in groups}):
        band = [part for g, part in zip(groups, parts, strict=True) if g.top == top]
        bands.append(_join(band, dim=2))
    return _join(bands, dim=1)


def split_windows(x: Tensor, groups: tuple[WindowGroup, ...], num_special: int) -> Tensor:
    """Merged tokens [B, S + N, C] to split ones: every window starts from the special tokens."""
    batch, _, channels = x.shape
    special = x[:, None, :num_special]  # [B, 1, S, C]
    parts, start = [], num_special
    for g in groups:
        size = g.windows * g.patches
        part = x[:, start : start + size].reshape(batch, g.windows, g.patches, channels)
        part = torch.cat((special.expand(-1, g.windows, -1, -1), part), dim=2)
        parts.append(part.flatten(1, 2))  # [B, windows * (S + patches), C]
        start += size
    return _join(parts)


def merge_windows(x: Tensor, groups: tuple[WindowGroup, ...], num_special: int) -> Tensor:
    """Split tokens to merged ones [B, S + N, C]: special tokens become their mean over windows."""
    batch, _, channels = x.shape
    special, patches, start = [], [], 0
    for g in groups:
        size = g.windows * (num_special + g.patches)
        part = x[:, start : start + size].reshape(batch, g.windows, -1, channels)
        special.append(part[:, :, :num_special])
        patches.append(part[:, :, num_special:].flatten(1, 2))
        start += size
    return torch.cat((_join(special).mean(dim=1), *patches), dim=1)


def _join(parts: list[Tensor], dim: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
