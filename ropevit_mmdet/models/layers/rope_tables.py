"""Rope tables of the grids a model meets, laid out for global and for windowed attention.

Tables are float32, derived from settings alone, never part of a checkpoint, and kept in a small
cache per model: one per grid and device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ropevit_mmdet.models.layers.rope import CoordNoise, Rope
from ropevit_mmdet.models.layers.windows import WindowGroup, to_window_order

_MAX_TABLES = 16  # multi-scale training meets many grids


class Segment(NamedTuple):
    """A run of tokens that is cut into equal windows, each attending within itself."""

    windows: int
    tokens: int  # of one window, special tokens included
    cos: Tensor  # [tokens, 1, D], float32
    sin: Tensor

    def divided(self, limit: int) -> list[Segment]:
        """Segments of whole windows, each of at most ``limit`` tokens or of a single window."""
        step = max(1, limit // self.tokens)
        starts = range(0, self.windows, step)
        return [self._replace(windows=min(step, self.windows - start)) for start in starts]


class RopeTables:
    """Segments, with their tables, of any grid.

    Args:
        window_rope, global_rope: how tokens turn in windowed and in global blocks.
        num_special: special tokens in front of every window.
        window_size: patches; None without windows.
        period: patches that span the pretraining grid in global attention; None: the input's.
    """

    def __init__(
        self,
        window_rope: Rope,
        global_rope: Rope,
        *,
        num_special: int,
        window_size: int | None,
        period: float | None,
    ) -> None:
        self.window_rope, self.global_rope = window_rope, global_rope
        self.num_special = num_special
        self.window_size = window_size
        self.period = None if period is None else (period, period)
        self._cache: dict[tuple, tuple[Tensor, Tensor]] = {}

    def segments(
        self,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...],
        *,
        device: torch.device,
        training: bool,
    ) -> tuple[list[Segment], list[Segment]]:
        """The segments of a global block and those of a windowed one, for grid (rows, columns)."""
        noise = self.global_rope.draw_noise(device) if training else None
        cos, sin = self._table("global", grid, groups, device, noise)
        whole = [Segment(1, self.num_special + grid[0] * grid[1], cos, sin)]
        if self.window_size is None:
            return whole, whole
        windows = []
        for g in groups:
            cos, sin = self._table("window", (g.height, g.width), groups, device, noise)
            windows.append(Segment(g.windows, self.num_special + g.patches, cos, sin))
        return whole, windows

    def _table(
        self,
        kind: str,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...],
        device: torch.device,
        noise: CoordNoise | None,
    ) -> tuple[Tensor, Tensor]:
        build = self._global_table if kind == "global" else self._window_table
        if noise is not None or torch.compiler.is_compiling():
            return build(grid, groups, device, noise)
        key = (kind, grid, device)
        if key not in self._cache:
            # A table made in inference mode could not take part in training later.
            with torch.inference_mode(False), torch.no_grad():
                # A GPU's cosines differ from a CPU's in the last digit: one table for all devices.
                cos, sin = build(grid, groups, torch.device("cpu"), noise)
                table = cos.to(device), sin.to(device)
            while len(self._cache) >= _MAX_TABLES:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = table
        return self._cache[key]

    def _global_table(
        self,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...],
        device: torch.device,
        noise: CoordNoise | None,
    ) -> tuple[Tensor, Tensor]:
        cos, sin = self.global_rope.table(grid, period=self.period, noise=noise, device=device)
        cos, sin = (to_window_order(t.view(1, *grid, -1), groups)[0] for t in (cos, sin))
        return self.with_special(cos, sin)

    def _window_table(
        self,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...],
        device: torch.device,
        noise: CoordNoise | None,
    ) -> tuple[Tensor, Tensor]:
        """The top-left part of the table of an image of w x w patches."""
        whole = (self.window_size, self.window_size)
        cos, sin = self.window_rope.table(whole, noise=noise, device=device)
        cos, sin = (t.view(*whole, -1)[: grid[0], : grid[1]].flatten(0, 1) for t in (cos, sin))
        return self.with_special(cos, sin)

    def with_special(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] to [S + N, 1, D]: special tokens are turned by (1, 0), that is, left alone."""
        cos = torch.cat((cos.new_ones(self.num_special, cos.shape[-1]), cos))
        sin = torch.cat((sin.new_zeros(self.num_special, sin.shape[-1]), sin))
        return cos[:, None], sin[:, None]
