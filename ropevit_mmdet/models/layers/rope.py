"""Rotary position tables of RoPE ViTs and their application, to the digit of birder.

The default style of these weights is *not* a rotation: every angle stands twice side by side,
but channel i is turned against channel i + D/2, so the two carry different angles. Norms change
and logits depend on absolute position. The weights were trained that way; it stays.

Papers: RoPE, arXiv 2104.09864; RoPE for ViT, arXiv 2403.13298. Reference implementation: birder
0.8.4, ``birder/layers/rope.py``. Shapes: N tokens, S special tokens, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ropevit_mmdet.models.layers.rope_triton import Turn, can_turn


class CoordNoise(NamedTuple):
    """One draw of the ``centered_separate`` coordinate augmentation, applied in field order."""

    shift: Tensor | None = None  # [2], added
    jitter: Tensor | None = None  # [2], multiplied, per axis
    rescale: Tensor | None = None  # [1], multiplied, both axes


@dataclasses.dataclass(frozen=True)
class Rope:
    """The settings of a rotary embedding; ``table`` lays it out for a grid.

    ``pt_grid``: (rows, columns) in patches that the whole grid is fitted to (default style).
    """

    head_dim: int
    temperature: float = 100.0
    style: str = "default"  # | 'axial' | 'centered_separate'
    rotation: str = "standard"  # pairs (i, i + D/2) | 'interleaved': pairs (2i, 2i + 1)
    indexing: str = "ij"  # rows turn the first half of the channels | 'xy': columns do
    offset: int = 0  # patches, added to every index
    pt_grid: tuple[int, int] | None = None
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None

    def table(
        self,
        grid: tuple[int, int],
        *,
        period: tuple[float, float] | None = None,
        noise: CoordNoise | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of every patch, row by row.

        Args:
            grid: (rows, columns) in patches.
            period: patches that span ``pt_grid``, per axis; default: the grid itself.
            noise: a draw of ``draw_noise``; only ``centered_separate`` looks at it.

        Returns:
            cos [N, D] and sin [N, D], float32; sin carries the minus sign of the first channel
            of each pair, ready for ``rotate``.
        """
        num_bands = self.head_dim // 4
        exponents = torch.arange(0, num_bands, 1, device=device) / num_bands
        bands = 1.0 / (self.temperature**exponents)  # radians per patch
        if self.style == "default":
            angles = self._default_angles(grid, period or grid, bands)
        elif self.style == "axial":
            angles = _axial_angles(grid, bands)
        else:
            angles = _centered_angles(grid, bands, noise or CoordNoise())
        return angles.cos(), angles.sin() * self._signs(device)

    def draw_noise(self, device: torch.device | str | None = None) -> CoordNoise | None:
        """A training draw of shift, jitter and rescale; None where the settings have none."""
        if self.shift is None and self.jitter is None and self.rescale is None:
            return None
        shift = jitter = rescale = None
        if self.shift is not None:
            shift = torch.empty(2, device=device).uniform_(-self.shift, self.shift)
        if self.jitter is not None:
            bound = math.log(self.jitter)
            jitter = torch.empty(2, device=device).uniform_(-bound, bound).exp()
        if self.rescale is not None:
            bound = math.log(self.rescale)
            rescale = torch.empty(1, device=device).uniform_(-bound, bound).exp()
        return CoordNoise(shift, jitter, rescale)

    def _default_angles(
        self, grid: tuple[int, int], period: tuple[float, float], bands: Tensor
    ) -> Tensor:
        span = self.pt_grid or grid
        rows, columns = (
            (torch.arange(n, device=bands.device) + self.offset) / p * s  # x / s * s is not x
            for n, p, s in zip(grid, period, span, strict=True)
        )
        coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        if self.indexing == "xy":
            coords = coords.flip(-1)
        angles = coords.view(-1, 2, 1) * bands  # [N, 2, D/4]
        return angles.flatten(1).repeat_interleave(2, dim=-1)

    def _signs(self, device: torch.device | str | None) -> Tensor:
        signs = torch.ones(self.head_dim, device=device)
        if self.rotation == "standard":
            signs[: self.head_dim // 2] = -1
        else:
            signs[::2] = -1
        return signs


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotation: str) -> Tensor:
    """Turns queries or keys: each channel times its cosine plus its partner times the sine.

    Args:
        x: [..., N, h, D] of any floating dtype.
        cos, sin: [N, 1, D] from ``Rope.table``, float32.
        rotation: 'standard' or 'interleaved', as in ``Rope``.

    Returns:
        A new tensor like ``x``; the arithmetic is at least float32, the result has x's dtype.
    """
    if can_turn(x):
        return Turn.apply(x, cos, sin, rotation)
    if rotation == "standard":
        partner = torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)
    else:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + partner * sin).to(x.dtype)


def _axial_angles(grid: tuple[int, int], bands: Tensor) -> Tensor:
    rows = torch.arange(grid[0], device=bands.device, dtype=bands.dtype)
    columns = torch.arange(grid[1], device=bands.device, dtype=bands.dtype)
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")
    angles = torch.stack((columns, rows), dim=-1).view(-1, 2, 1) * bands  # columns come first
    return angles.flatten(1).repeat_interleave(2, dim=-1)


def _centered_angles(grid: tuple[int, int], bands: Tensor, noise: CoordNoise) -> Tensor:
    rows, columns = (
        (torch.arange(n, device=bands.device, dtype=bands.dtype) + 0.5) / n for n in grid
    )
    coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2)
    coords = 2.0 * coords - 1.0  # [N, 2], from -1 to 1
    if noise.shift is not None:
        coords = coords + noise.shift
    if noise.jitter is not None:
        coords = coords * noise.jitter
    if noise.rescale is not None:
        coords = coords * noise.rescale
    angles = (2.0 * math.pi * coords.unsqueeze(-1)) * bands  # [N, 2, D/4]
    return angles.flatten(1).tile(2)
