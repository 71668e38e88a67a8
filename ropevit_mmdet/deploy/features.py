"""Backbone and neck as a graph for every image size.

A graph cannot have `RoPEViT`'s ragged windows: the grid is padded to complete windows (ViTDet,
arXiv 2203.16527) and attention is masked, with the same result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.rope import Segment
from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid


class DynamicFeatures(nn.Module):
    """Computes a detector's `extract_feat` for images of any size, with the same modules."""

    backbone: RoPEViT

    def __init__(self, model: Any) -> None:
        super().__init__()
        neck = getattr(model, "neck", None)
        self.backbone = model.backbone
        self.neck = None if neck is None else DynamicNeck(neck)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Takes normalized images [B, 3, H, W]; returns the neck's maps, else the backbone's."""
        outputs, grid, _ = self.encode(images)
        patches = [tokens[:, self.backbone.arch.num_special_tokens :] for tokens in outputs]
        patches[-1] = self.backbone.norm(patches[-1])
        maps = tuple(x.unflatten(1, grid).permute(0, 3, 1, 2) for x in patches)
        return maps if self.neck is None else self.neck(maps)

    def encode(
        self, images: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[list[Tensor], tuple[int, int], Segment]:
        """`RoPEViT.encode`, with the grid; patches are in the order of the grid."""
        backbone, num_special = self.backbone, self.backbone.arch.num_special_tokens
        images = pad_to_multiple(images, backbone.patch_size)
        grid_map = backbone.patch_embed.proj(images).permute(0, 2, 3, 1)  # [B, rows, columns, C]
        grid = (grid_map.shape[1], grid_map.shape[2])
        if backbone.arch.abs_pos_embed:
            grid_map = grid_map + self._pos_embed(grid)
        x = backbone.pre_norm(backbone.add_special_tokens(grid_map.flatten(1, 2)))
        layout = _Windows(grid, backbone.window_size or 1, num_special)
        segments = self._global_segments(grid, images)
        outputs = backbone.run_blocks(
            x,
            segments,
            self._window_segments(layout, images) if backbone.window_size else [],
            split=layout.split,
            merge=layout.merge,
            indices=indices,
        )
        return outputs, grid, segments[0]

    def _pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """`RoPEViT.grid_pos_embed`, [1, rows, columns, C], without a special case per grid."""
        backbone = self.backbone
        if backbone.pos_embed_mode == "interpolate":
            return backbone.interpolated_pos_embed(grid)
        embed, (rows, columns) = backbone.pretrain_pos_embed(), backbone.pretrain_grid
        row, column = (torch.arange(side, device=embed.device) for side in grid)
        return embed.index_select(1, row % rows).index_select(2, column % columns)

    def _global_segments(self, grid: tuple[int, int], images: Tensor) -> list[Segment]:
        tables = self.backbone.rope_tables
        rope = tables.global_rope.table(grid, period=tables.period, device=images.device)
        tokens = tables.num_special + grid[0] * grid[1]
        return [Segment(1, tokens, *tables.with_special(*rope))]

    def _window_segments(self, layout: _Windows, images: Tensor) -> list[Segment]:
        tables, window = self.backbone.rope_tables, layout.window
        rope = tables.window_rope.table((window, window), device=images.device)
        mask = layout.mask(images.shape[0], images.device)
        return [Segment(1, tables.num_special + window**2, *tables.with_special(*rope), mask)]


class DynamicNeck(nn.Module):
    """A `SimpleFeaturePyramid` that computes the sizes of resampled levels in integers."""

    def __init__(self, neck: SimpleFeaturePyramid) -> None:
        super().__init__()
        self.factors = [
            Fraction(own / out).limit_denominator(4096)
            for own, out in zip(neck.own_strides, neck.strides)
        ]
        self.neck = copy.copy(neck)  # the same layers without the final resampling
        self.neck.strides = neck.own_strides

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        levels = self.neck(maps)
        return tuple(resample(level, factor) for level, factor in zip(levels, self.factors))


def unsupported_features(model: Any) -> list[str]:
    """Returns what `DynamicFeatures` does not support in a detector's backbone and neck."""
    backbone, neck = (getattr(model, name, None) for name in ("backbone", "neck"))
    findings = []
    if type(backbone) is not RoPEViT:
        findings.append(f"{type(backbone).__name__} (only RoPEViT)")
    if neck is not None and type(neck) is not SimpleFeaturePyramid:
        findings.append(f"{type(neck).__name__} (only SimpleFeaturePyramid or no neck)")
    return findings


def min_side(model: Any) -> int:
    """The shortest side in pixels at which every feature map has two rows and columns or more."""
    neck = getattr(model, "neck", None)
    return model.backbone.patch_size + 1 if neck is None else int(max(neck.own_strides)) + 1


def pad_to_multiple(images: Tensor, divisor: int, value: float = 0.0) -> Tensor:
    """Pads images [B, C, H, W] at the right and bottom to multiples of the divisor."""
    for dim in (2, 3):  # by indices: a padding of 0 at the traced size would stay 0 in the graph
        length = images.shape[dim]
        indices = torch.arange(_ceil_div(length, divisor) * divisor, device=images.device)
        inside = (indices < length).view((-1, 1) if dim == 2 else (-1,))
        images = images.index_select(dim, _at_most(indices, length - 1))
        images = torch.where(inside, images, torch.full_like(images, value))
    return images


def resample(level: Tensor, factor: Fraction) -> Tensor:
    """Bilinear by exactly `factor`, [B, C, H, W]: one axis at a time, by gathered indices."""
    over, under = factor.as_integer_ratio()
    for dim in (2, 3) if factor != 1 else ():
        length = level.shape[dim]
        new_length = _ceil_div(length * over, under)
        centers = torch.arange(new_length, device=level.device).to(level.dtype) + 0.5
        position = (centers * (under / over) - 0.5).clamp(min=0)
        before = position.floor()
        weight = (position - before).view(-1, *[1] * (3 - dim))
        first = _at_most(before.long(), length - 1)
        second = _at_most(first + 1, length - 1)
        low, high = level.index_select(dim, first), level.index_select(dim, second)
        level = low * (1 - weight) + high * weight
    return level


class _Windows:
    """Splits and merges by indices: a reshape would fix whether there are several windows."""

    def __init__(self, grid: tuple[int, int], window: int, num_special: int) -> None:
        self.grid, self.window, self.num_special = grid, window, num_special
        self.columns = _ceil_div(grid[1], window)  # of windows
        self.windows = _ceil_div(grid[0], window) * self.columns

    def split(self, x: Tensor) -> Tensor:
        """[B, S + N, C] -> [B * windows, S + w * w, C]; the last row and column are repeated."""
        row, column = self._positions(x.device)
        indices = _at_most(row, self.grid[0] - 1) * self.grid[1]
        indices = indices + _at_most(column, self.grid[1] - 1) + self.num_special
        patches = x.index_select(1, indices).unflatten(1, (self.windows, self.window**2))
        special = x[:, None, : self.num_special].expand(-1, self.windows, -1, -1)
        return torch.cat((special, patches), dim=2).flatten(0, 1)

    def merge(self, x: Tensor) -> Tensor:
        """The inverse of `split`; averages the special tokens over the windows."""
        w, num_special = self.window, self.num_special
        patch = torch.arange(self.grid[0] * self.grid[1], device=x.device)
        row, column = _divmod(patch, self.grid[1])
        window = row // w * self.columns + column // w
        indices = window * (num_special + w**2) + num_special + row % w * w + column % w
        x = x.unflatten(0, (-1, self.windows))  # [B, windows, S + w * w, C]
        patches = x.flatten(1, 2).index_select(1, indices)
        return torch.cat((x[:, :, :num_special].mean(dim=1), patches), dim=1)

    def mask(self, batch: int, device: torch.device) -> Tensor:
        """False for repeated patches, [B * windows, 1, 1, S + w * w]."""
        row, column = self._positions(device)
        inside = (row < self.grid[0]) & (column < self.grid[1])
        inside = F.pad(inside.view(self.windows, -1), (self.num_special, 0), value=True)
        return inside[:, None, None].repeat(batch, 1, 1, 1)

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column in the grid of every patch of every window, [windows * w * w]."""
        w = self.window
        patch = torch.arange(self.windows * w**2, device=device)
        row, column = _divmod(patch // w**2, self.columns)  # of windows
        return row * w + patch % w**2 // w, column * w + patch % w


def _at_most(indices: Tensor, last: int) -> Tensor:
    return torch.minimum(indices, torch.full_like(indices[:1], last))


def _divmod(indices: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """The ONNX exporter has no remainder by a dynamic size."""
    quotient = indices // by
    return quotient, indices - quotient * by


def _ceil_div(length: int, unit: int) -> int:
    return (length + unit - 1) // unit  # no negative numbers: ONNX rounds towards zero
