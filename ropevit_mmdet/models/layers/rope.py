"""Rotary position embedding of RoPE ViTs: tables, their cache and their application.

The default style of these weights is *not* a rotation: every angle appears twice, adjacent, but
channel i is paired with channel i + D/2, so the two have different angles. Norms change, and logits
depend on absolute position. The weights were trained this way, so it stays.

Papers: RoPE, arXiv 2104.09864; RoPE for ViT, arXiv 2403.13298. Reference implementation: birder
0.8.4, `birder/layers/rope.py`. Shapes: N patches, S special tokens, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ropevit_mmdet.models.layers._tracing import is_traced
from ropevit_mmdet.models.layers.rope_triton import ApplyRope, is_supported
from ropevit_mmdet.models.layers.windows import WindowGroup, to_window_order

_MAX_TABLES = 16  # multi-scale training uses many grids


class CoordNoise(NamedTuple):
    """A sample of the `centered_separate` coordinate augmentation, applied in this order."""

    shift: Tensor | None = None  # [2], added
    jitter: Tensor | None = None  # [2], multiplied, per axis
    rescale: Tensor | None = None  # [1], multiplied, both axes


@dataclasses.dataclass(frozen=True)
class Rope:
    """The settings of a rotary embedding.

    Args:
        head_dim: channels of a head, D; a multiple of 4.
        temperature: base of the frequency bands.
        style: 'default', 'axial', 'centered_separate', 'centered_periods' or 'mixed'.
        rotation: 'standard' pairs channels (i, i + D/2), 'interleaved' pairs (2i, 2i + 1).
        indexing: 'ij': rows give the angles of the first half of the channels; 'xy': columns.
        offset: patches, added to every index (default style).
        pt_grid: (rows, columns) in patches that coordinates are scaled to (default style); None:
            the grid itself.
        shift, jitter, rescale: bounds of the coordinate noise in training (centered styles).
    """

    head_dim: int
    temperature: float = 100.0
    style: str = "default"
    rotation: str = "standard"
    indexing: str = "ij"
    offset: int = 0
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
            period: patches that span `pt_grid`, per axis; default: the grid itself.
            noise: a sample of `sample_noise`, used by the centered styles.
            device: device of the result.

        Returns:
            cos [N, D] and sin [N, D], float32; sin has the minus sign of the first channel of each
            pair, as `apply_rope` expects. For `mixed`, whose angles `MixedRope` learns: column and
            row of every patch, [N, 1].
        """
        coords = self._coords(grid, period or grid, noise or CoordNoise(), device)
        if self.style == "mixed":
            return coords[:, 1:], coords[:, :1]
        if self.style == "axial" or self.indexing == "xy":
            coords = coords.flip(-1)
        num_bands = self.head_dim // 4
        exponents = torch.arange(num_bands, device=device, dtype=torch.float32) / num_bands
        periods = self.temperature**exponents
        coords = coords.unsqueeze(-1)
        is_divided = self.style == "centered_periods"
        angles = coords / periods if is_divided else coords * (1.0 / periods)  # [N, 2, D/4]
        angles = angles.flatten(1)
        if self.style.startswith("centered"):
            angles = angles.tile(2)
        else:
            angles = angles.repeat_interleave(2, dim=-1)
        signs = torch.ones(self.head_dim, device=device, dtype=torch.float32)
        if self.rotation == "standard":
            signs[: self.head_dim // 2] = -1
        else:
            signs[::2] = -1
        return angles.cos(), angles.sin() * signs

    def sample_noise(self, device: torch.device | str | None = None) -> CoordNoise | None:
        """Samples shift, jitter and rescale for a training step; None if the settings have none."""
        if self.shift is None and self.jitter is None and self.rescale is None:
            return None

        def sample(size: int, bound: float) -> Tensor:
            return torch.empty(size, device=device, dtype=torch.float32).uniform_(-bound, bound)

        shift = jitter = rescale = None
        if self.shift is not None:
            shift = sample(2, self.shift)
        if self.jitter is not None:
            jitter = sample(2, math.log(self.jitter)).exp()
        if self.rescale is not None:
            rescale = sample(1, math.log(self.rescale)).exp()
        return CoordNoise(shift, jitter, rescale)

    def _coords(
        self,
        grid: tuple[int, int],
        period: tuple[float, float],
        noise: CoordNoise,
        device: torch.device | str | None,
    ) -> Tensor:
        """Row and column of every patch, [N, 2], scaled and moved as the style does."""
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
        if self.style == "default":
            span = self.pt_grid or grid  # x / s * s is not x
            axes = [(x + self.offset) / p * s for x, p, s in zip(axes, period, span, strict=True)]
        is_centered = self.style.startswith("centered")
        if is_centered:
            axes = [(x + 0.5) / n for x, n in zip(axes, grid, strict=True)]
        coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 2)
        if not is_centered:
            return coords
        coords = 2.0 * coords - 1.0  # from -1 to 1
        if noise.shift is not None:
            coords = coords + noise.shift
        if noise.jitter is not None:
            coords = coords * noise.jitter
        if noise.rescale is not None:
            coords = coords * noise.rescale
        return 2.0 * math.pi * coords


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, rotation: str) -> Tensor:
    """Applies a rope table to queries or keys.

    Every channel becomes itself times its cosine plus its partner times its sine.

    Args:
        x: [..., N, h, D] of any floating dtype.
        cos, sin: [N, 1, D] from `Rope.table`, or [N, h, D] from `MixedRope`, float32.
        rotation: 'standard' or 'interleaved', as in `Rope`.

    Returns:
        A new tensor like `x`; computed in float32 at least, in the dtype of `x`.
    """
    if cos.shape[-2] == 1 and not cos.requires_grad and is_supported(x):
        return ApplyRope.apply(x, cos, sin, rotation)
    if rotation == "standard":
        partner = torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)
    else:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + partner * sin).to(x.dtype)


class MixedRope(nn.Module):
    """The learned frequencies of a block, per head and axis (RoPE-Mixed, arXiv 2403.13298).

    At first they have the lengths of bands and, for every head, a random direction. Reference
    implementation: timm 1.0.31, `timm/layers/pos_embed_sincos.py`.
    """

    def __init__(self, num_heads: int, head_dim: int, temperature: float) -> None:
        super().__init__()
        bands = 1.0 / temperature ** (torch.arange(0, head_dim, 4) / head_dim)
        angles = 2.0 * math.pi * torch.rand(num_heads, 1)
        angles = torch.stack((angles, angles + math.pi / 2), dim=1)  # [h, 2, 1]
        freqs = torch.stack((bands * angles.cos(), bands * angles.sin())).flatten(2)
        self.freqs = nn.Parameter(freqs)  # [2, h, D/2], radians per column and per row

    def forward(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [tokens, 1, 1] to cos and signed sin [tokens, h, D], for `apply_rope`."""
        freqs = self.freqs.float()
        angles = columns * freqs[0] + rows * freqs[1]  # [tokens, h, D/2]
        sin = angles.sin()
        return angles.cos().repeat_interleave(2, dim=-1), torch.stack((-sin, sin), -1).flatten(-2)


class Segment(NamedTuple):
    """A run of tokens that is cut into equal windows, each attending within itself."""

    windows: int
    tokens: int  # of one window, special tokens included
    cos: Tensor  # [tokens, 1, D], float32; for `MixedRope`, columns and rows [tokens, 1, 1]
    sin: Tensor
    # Of keys, [B * windows, 1, 1, tokens], or a row per query, [B * windows, 1, tokens, tokens]:
    # True takes part.
    mask: Tensor | None = None

    def with_leading(self, count: int) -> Segment:
        """The segment with `count` more tokens at the start of every window, not rotated."""
        cos, sin = _with_identity(self.cos, self.sin, count)
        return Segment(self.windows, self.tokens + count, cos, sin)


class RopeTables:
    """Segments with their rope tables, for any grid.

    Tables are float32, follow from the settings, and are never part of a checkpoint. A few per
    model are cached, one per grid and device.

    Args:
        window_rope: settings for windowed blocks.
        global_rope: settings for global blocks.
        num_special: special tokens at the start of every window, S.
        window_size: patches; None without windows.
        period: patches that span the pretraining grid in global attention; None: the input's grid.
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
        """The segments of a global block and those of a windowed block.

        `groups` are the windows of a grid of (rows, columns) patches. In training coordinate noise
        is sampled, where the settings have it.
        """
        noise = self.global_rope.sample_noise(device) if training else None
        cos, sin = self._cached(grid, groups, device, noise)
        global_segments = [Segment(1, self.num_special + grid[0] * grid[1], cos, sin)]
        if self.window_size is None:
            return global_segments, global_segments
        windows = []
        for g in groups:
            cos, sin = self._cached((g.height, g.width), None, device, noise)
            windows.append(Segment(g.windows, self.num_special + g.patches, cos, sin))
        return global_segments, windows

    def with_special(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [N, D] as [S + N, 1, D]: special tokens are not rotated."""
        return _with_identity(cos[:, None], sin[:, None], self.num_special)

    def _cached(
        self,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...] | None,
        device: torch.device,
        noise: CoordNoise | None,
    ) -> tuple[Tensor, Tensor]:
        if noise is not None or is_traced():
            return self._table(grid, groups, device, noise)
        key = (grid, groups is None, device)
        table = self._cache.get(key)
        if table is None:
            # Training could not use a table that was built in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                # The cosines of a GPU and a CPU differ in the last digit: one table for all.
                cos, sin = self._table(grid, groups, torch.device("cpu"), noise)
                table = cos.to(device), sin.to(device)
            # A new dict, never a changed one: other threads may read it at this moment.
            self._cache = dict([*self._cache.items(), (key, table)][-_MAX_TABLES:])
        return table

    def _table(
        self,
        grid: tuple[int, int],
        groups: tuple[WindowGroup, ...] | None,
        device: torch.device,
        noise: CoordNoise | None,
    ) -> tuple[Tensor, Tensor]:
        """Of global attention, in the order of `groups`; of a window of that grid without them.

        The latter is the top-left part of the table of `window_size` x `window_size` patches.
        """
        if groups is not None:
            table = self.global_rope.table(grid, period=self.period, noise=noise, device=device)
            cos, sin = (to_window_order(t.view(1, *grid, -1), groups)[0] for t in table)
            return self.with_special(cos, sin)
        assert self.window_size is not None  # there are windowed blocks
        window = (self.window_size, self.window_size)
        table = self.window_rope.table(window, noise=noise, device=device)
        cos, sin = (t.view(*window, -1)[: grid[0], : grid[1]].flatten(0, 1) for t in table)
        return self.with_special(cos, sin)


def _with_identity(cos: Tensor, sin: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tables, or positions of `MixedRope`, after those of `count` tokens that are not rotated."""
    shape = (count, *cos.shape[1:])
    first = cos.new_full(shape, 0.0 if cos.shape[-1] == 1 else 1.0)
    return torch.cat((first, cos)), torch.cat((sin.new_zeros(shape), sin))
