"""Grids of patches to windows and back, with the special tokens.

Where windows do not divide the grid, the last row and column of windows are smaller: no padding, no
masks. Windows of one size form a group; there are at most four groups (inner, right edge, bottom
edge, corner).

*Window order* is the order of patch tokens in all blocks: group by group, window by window, row by
row. There are two layouts of an image's tokens, both [B, tokens, C]:

- merged: the S special tokens, then the N patches in window order;
- split: window by window, each starting with its own copy of the S special tokens.

Papers: ViTDet (windowed plain ViTs), arXiv 2203.16527; windows with the position embedding of
pretraining, arXiv 2311.05613.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class WindowGroup(NamedTuple):
    """Equal windows that tile a rectangle of the grid."""

    top: int  # patches
    left: int
    rows: int  # windows
    columns: int
    height: int  # patches of one window
    width: int

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self.rows * self.columns

    @property
    def patches(self) -> int:
        """Patches of one window."""
        return self.height * self.width


def window_groups(grid: tuple[int, int], window: int | None) -> tuple[WindowGroup, ...]:
    """Divides a grid into windows.

    Args:
        grid: (rows, columns) in patches.
        window: patches per side; None: one window covers the grid.

    Returns:
        The groups, from top to bottom, then from left to right.
    """
    if window is None:
        return (WindowGroup(0, 0, 1, 1, *grid),)

    def runs(length: int) -> list[tuple[int, int, int]]:  # (start, windows, patches of a window)
        count, rest = length // window, length % window  # torch.compile traces no divmod
        full = [(0, count, window)] if count else []
        return full + ([(count * window, 1, rest)] if rest else [])

    return tuple(
        WindowGroup(top, left, rows, columns, height, width)
        for top, rows, height in runs(grid[0])
        for left, columns, width in runs(grid[1])
    )


def to_window_order(grid_map: Tensor, groups: tuple[WindowGroup, ...]) -> Tensor:
    """A feature map [B, rows, columns, C] as tokens [B, N, C] in window order."""
    batch, _, _, channels = grid_map.shape
    parts = []
    for g in groups:
        part = grid_map[:, g.top : g.top + g.rows * g.height, g.left : g.left + g.columns * g.width]
        part = part.reshape(batch, g.rows, g.height, g.columns, g.width, channels)
        part = part.permute(0, 1, 3, 2, 4, 5)  # [B, rows, columns, height, width, C]
        parts.append(part.reshape(batch, g.windows * g.patches, channels))
    return _join(parts)


def to_grid(tokens: Tensor, groups: tuple[WindowGroup, ...]) -> Tensor:
    """Tokens [B, N, C] in window order as a feature map [B, rows, columns, C]."""
    batch, _, channels = tokens.shape
    parts, start = [], 0
    for g in groups:
        size = g.windows * g.patches
        part = tokens[:, start : start + size]
        part = part.reshape(batch, g.rows, g.columns, g.height, g.width, channels)
        part = part.permute(0, 1, 3, 2, 4, 5)  # [B, rows, height, columns, width, C]
        parts.append(part.reshape(batch, g.rows * g.height, g.columns * g.width, channels))
        start += size
    # Groups up to the next left edge are neighbors in a row. A set of their tops would do, but
    # torch.compile fixes values that are hashed: a graph for every height.
    bands: list[list[Tensor]] = []
    for g, part in zip(groups, parts, strict=True):
        if g.left == 0:
            bands.append([])
        bands[-1].append(part)
    return _join([_join(band, dim=2) for band in bands], dim=1)


def split_windows(x: Tensor, groups: tuple[WindowGroup, ...], num_special: int) -> Tensor:
    """Merged tokens [B, S + N, C] to split ones: every window gets a copy of the special tokens."""
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
    """Split tokens to merged tokens [B, S + N, C]: special ones become their mean over windows."""
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
