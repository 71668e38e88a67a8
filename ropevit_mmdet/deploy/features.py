"""Backbone and neck in a form whose graph holds for every height and width.

`RoPEViT` sorts tokens into groups of equal windows, by Python numbers: the traced size's number of
groups would be fixed in the graph. Here there is one group: the grid is filled up to whole windows
and attention is masked, so that the filling is never looked at (as the window padding of ViTDet,
arXiv 2203.16527, but masked). Same weights, same rope tables, same result; equality over sizes is
tested.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.block import Block
from ropevit_mmdet.models.layers.rope import rotate
from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid


class DynamicFeatures(nn.Module):
    """What a detector's `extract_feat` returns, for images of any size.

    Holds the detector's own modules, not copies of them. Raises ValueError for a backbone or a neck
    that is not one of this package's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        backbone, neck = model.backbone, getattr(model, "neck", None)
        if type(backbone) is not RoPEViT:
            raise ValueError(
                f"backbone {type(backbone).__name__} cannot be exported: RoPEViT can, with a "
                "SimpleFeaturePyramid or no neck"
            )
        if neck is not None and type(neck) is not SimpleFeaturePyramid:
            raise ValueError(
                f"neck {type(neck).__name__} cannot be exported: SimpleFeaturePyramid can, or none"
            )
        self.backbone = DynamicBackbone(backbone)
        self.neck = None if neck is None else DynamicNeck(neck)
        self.num_maps = len(backbone.out_indices) if neck is None else len(neck.strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], normalised, to the maps of the neck, or of the backbone without one.

        Sides that the patch does not divide are padded with zeros, as `RoPEViT` does.
        """
        maps = self.backbone(pad_to_multiple(images, self.backbone.patch_size))
        return maps if self.neck is None else self.neck(maps)


class DynamicBackbone(nn.Module):
    """A `RoPEViT` in evaluation, for images of whole patches."""

    def __init__(self, backbone: RoPEViT) -> None:
        super().__init__()
        self.model = backbone
        self.patch_size = backbone.patch_size
        self.num_special = backbone.arch.num_special_tokens

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], sides multiples of the patch, to one map per out_index."""
        model = self.model
        grid_map = model.patch_embed.proj(images)  # [B, C, rows, columns]
        layout = _Layout(tuple(grid_map.shape[2:]), model.window_size, self.num_special)
        global_rope = self._global_rope(layout.grid, images.device)
        window_rope = self._window_rope(images.device)
        mask = None if model.window_size is None else layout.mask(len(images), images.device)

        x, outputs, split = model.pre_norm(self._embed(grid_map)), [], False
        for i, block in enumerate(model.blocks):
            windowed = model.window_size is not None and i not in model.global_attn_indices
            if windowed and not split:
                x = layout.split(x)
            elif split and not windowed:
                x = layout.merge(x)
            split = windowed
            if windowed:
                x = _block(block, x, *window_rope, mask)
            else:
                x = _block(block, x, *global_rope, None)
            if i in model.out_indices:
                outputs.append(layout.merge(x) if split else x)
        outputs[-1] = model.norm(outputs[-1])
        patches = (x[:, self.num_special :].transpose(1, 2) for x in outputs)
        return tuple(x.unflatten(2, layout.grid) for x in patches)

    def _embed(self, grid_map: Tensor) -> Tensor:
        """A map [B, C, rows, columns] as merged tokens [B, S + N, C], patches row by row."""
        model, num_special = self.model, self.num_special
        learned = model.arch.abs_pos_embed
        tokens = grid_map.flatten(2).transpose(1, 2)  # [B, N, C]
        if learned:
            tokens = tokens + self._grid_pos_embed(tuple(grid_map.shape[2:]))
        if not num_special:
            return tokens
        names = ("reg_tokens", "cls_token")
        special = torch.cat([getattr(model, n) for n in names if hasattr(model, n)], dim=1)
        if learned and model.arch.pos_embed_special_tokens:
            special = special + model.pos_embed[:, :num_special]
        return torch.cat((special.expand(tokens.shape[0], -1, -1), tokens), dim=1)

    def _grid_pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding [1, N, C] of a grid."""
        model, (rows, columns) = self.model, self.model.pretrain_grid
        first = self.num_special if model.arch.pos_embed_special_tokens else 0
        embed = model.pos_embed[:, first:]
        if model.pos_embed_mode == "tile":
            patch = torch.arange(grid[0] * grid[1], device=embed.device)
            row, column = _divided(patch, grid[1])
            return embed.index_select(1, row % rows * columns + column % columns)
        resized = F.interpolate(  # at the pretraining grid itself it changes nothing
            embed.unflatten(1, (rows, columns)).permute(0, 3, 1, 2).float(),
            size=grid,
            mode=model.arch.pos_embed_interpolation_mode,
            antialias=model.arch.pos_embed_antialias,
        )
        return resized.flatten(2).transpose(1, 2).to(embed.dtype)

    def _global_rope(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        tables = self.model.rope_tables
        return tables.with_special(
            *tables.global_rope.table(grid, period=tables.period, device=device)
        )

    def _window_rope(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        tables, window = self.model.rope_tables, self.model.window_size
        if window is None:
            return None
        return tables.with_special(*tables.window_rope.table((window, window), device=device))


class DynamicNeck(nn.Module):
    """A `SimpleFeaturePyramid` whose levels are resampled by integer arithmetic on their sizes."""

    def __init__(self, neck: SimpleFeaturePyramid) -> None:
        super().__init__()
        self.factors = [
            Fraction(own / out).limit_denominator(4096)
            for own, out in zip(neck.own_strides, neck.strides)
        ]
        self.neck = copy.copy(neck)  # the same layers, without the resampling behind them
        self.neck.strides = neck.own_strides

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        levels = self.neck(maps)
        return tuple(_resample(level, factor) for level, factor in zip(levels, self.factors))


def pad_to_multiple(images: Tensor, divisor: int, value: float = 0.0) -> Tensor:
    """Images [B, C, H, W] filled up at the right and bottom until the divisor divides each side."""
    for dim in (2, 3):  # by indices: a padding of 0 at the traced size would stay 0 in the graph
        length = images.shape[dim]
        indices = torch.arange(_whole(length, divisor) * divisor, device=images.device)
        there = (indices < length).view((-1, 1) if dim == 2 else (-1,))
        images = images.index_select(dim, _at_most(indices, length - 1))
        images = torch.where(there, images, torch.full_like(images, value))
    return images


class _Layout:
    """Tokens of a grid, merged [B, S + N, C] and split into windows [B * windows, S + w * w, C].

    By computed indices: reshaping would ask in the graph whether there is one window or several.
    """

    def __init__(self, grid: tuple[int, int], window: int | None, num_special: int) -> None:
        self.grid = grid
        self.num_special = num_special
        if window is not None:
            self.window = window
            self.columns = _whole(grid[1], window)  # of windows
            self.windows = _whole(grid[0], window) * self.columns

    def split(self, x: Tensor) -> Tensor:
        """Every window gets the special tokens; the last row and column of patches fill up."""
        row, column = self._places(x.device)
        indices = _at_most(row, self.grid[0] - 1) * self.grid[1]
        indices = indices + _at_most(column, self.grid[1] - 1) + self.num_special
        patches = x.index_select(1, indices).unflatten(1, (self.windows, self.window**2))
        special = x[:, None, : self.num_special].expand(-1, self.windows, -1, -1)
        return torch.cat((special, patches), dim=2).flatten(0, 1)

    def merge(self, x: Tensor) -> Tensor:
        """Special tokens become their mean over windows; filling patches are left out."""
        w, num_special = self.window, self.num_special
        patch = torch.arange(self.grid[0] * self.grid[1], device=x.device)
        row, column = _divided(patch, self.grid[1])
        window = row // w * self.columns + column // w
        indices = window * (num_special + w**2) + num_special + row % w * w + column % w
        x = x.unflatten(0, (-1, self.windows))  # [B, windows, S + w * w, C]
        patches = x.flatten(1, 2).index_select(1, indices)
        return torch.cat((x[:, :, :num_special].mean(dim=1), patches), dim=1)

    def mask(self, batch: int, device: torch.device) -> Tensor:
        """Which tokens of a window may be looked at, [B * windows, 1, 1, S + w * w]."""
        row, column = self._places(device)
        there = (row < self.grid[0]) & (column < self.grid[1])
        there = F.pad(there.view(self.windows, -1), (self.num_special, 0), value=True)
        return there[:, None, None].repeat(batch, 1, 1, 1)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column in the grid of every patch of every window, [windows * w * w]."""
        w = self.window
        patch = torch.arange(self.windows * w**2, device=device)
        down, right = _divided(patch // w**2, self.columns)
        return down * w + patch % w**2 // w, right * w + patch % w


def _block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """A transformer block over [B, T, C], every row of the batch a window of its own."""
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    q = rotate(attn.q_norm(q), cos, sin, attn.rotation).to(v.dtype)  # [B, T, h, D]
    k = rotate(attn.k_norm(k), cos, sin, attn.rotation).to(v.dtype)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    attended = attended.transpose(1, 2).flatten(2)
    x = x + block.ls1(attn.proj(attn.norm(attended)))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _at_most(indices: Tensor, last: int) -> Tensor:
    return torch.minimum(indices, torch.full_like(indices[:1], last))


def _divided(indices: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder. The ONNX exporter knows no remainder by a size of the graph."""
    quotient = indices // by
    return quotient, indices - quotient * by


def _whole(length: int, unit: int) -> int:
    """Units that hold a length. ONNX divides towards zero: no negative numbers here."""
    return (length + unit - 1) // unit


def _resample(level: Tensor, factor: Fraction) -> Tensor:
    """Bilinear by exactly `factor`, as `neck._resample`: an axis at a time, by gathered indices."""
    if factor == 1:
        return level
    for dim in (2, 3):
        level = _resample_axis(level, factor, dim)
    return level


def _resample_axis(level: Tensor, factor: Fraction, dim: int) -> Tensor:
    length, (over, under) = level.shape[dim], factor.as_integer_ratio()
    new_length = _whole(length * over, under)
    centres = torch.arange(new_length, device=level.device).to(level.dtype) + 0.5
    place = (centres * (under / over) - 0.5).clamp(min=0)
    before = place.floor()
    share = (place - before).view(-1, *[1] * (3 - dim))
    first = _at_most(before.long(), length - 1)
    second = _at_most(first + 1, length - 1)
    low, high = level.index_select(dim, first), level.index_select(dim, second)
    return low * (1 - share) + high * share
