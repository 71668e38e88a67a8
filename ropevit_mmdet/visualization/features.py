"""What a RoPE ViT makes of an image: tokens, their norms, and a patch's attention, by block.

Registers take over what networks without them keep in a few patches of large norm: arXiv
2309.16588. Principal components of patch tokens as colors: arXiv 2304.07193.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.block import Attention, Block
from ropevit_mmdet.models.layers.rope_tables import Segment
from ropevit_mmdet.models.layers.windows import WindowGroup, merge_windows, to_grid, window_groups


@dataclass(frozen=True)
class BlockFeatures:
    """What comes out of a block, and where one patch looks in it; S special tokens, h heads.

    Special tokens are the registers, then the class token; those of windows are averaged, as the
    next global block gets them. Weights of a patch add up to 1 over its window and the special
    tokens; they are NaN outside of its window.
    """

    block: int
    windowed: bool
    patches: Tensor  # [rows, columns, C]
    special: Tensor  # [S, C]
    attention: Tensor  # [h, rows, columns]
    special_attention: Tensor  # [h, S]


@torch.no_grad()
def block_features(
    backbone: RoPEViT,
    image: Tensor,
    *,
    blocks: Sequence[int] = (-1,),
    patch: tuple[int, int] | None = None,
) -> list[BlockFeatures]:
    """The features of a normalised image [1, 3, H, W] at some blocks; -1 is the last.

    `patch` is the (row, column) whose attention is taken, default the middle one. Raises
    ValueError for a block or patch that is not there. Nothing is kept of a whole attention matrix.
    """
    depth, num_special = len(backbone.blocks), backbone.arch.num_special_tokens
    wrong = [block for block in blocks if not -depth <= block < depth]
    if wrong:
        raise ValueError(f"block {wrong[0]} is not there: the backbone has 0 to {depth - 1}")
    grid = tuple(-(-side // backbone.patch_size) for side in image.shape[-2:])
    patch = patch_in(grid, patch)
    groups = window_groups(grid, backbone.window_size)
    order = torch.arange(grid[0] * grid[1]).view(1, -1, 1)
    number = int(to_grid(order, groups)[0, patch[0], patch[1], 0])  # in window order

    found: dict[int, BlockFeatures] = {}

    def keep(index: int, block: Block, x: Tensor, segments: Sequence[Segment], y: Tensor) -> None:
        if sum(segment.windows for segment in segments) > 1:
            y = merge_windows(y, groups, num_special)
        weights, special = _patch_attention(block, x, segments, groups, number, num_special)
        found[index] = BlockFeatures(
            block=index,
            windowed=backbone.window_size is not None and index not in backbone.global_attn_indices,
            patches=to_grid(y[:, num_special:], groups)[0].cpu(),
            special=y[0, :num_special].cpu(),
            attention=weights.cpu(),
            special_attention=special.cpu(),
        )

    chosen = [block % depth for block in blocks]
    handles = [
        backbone.blocks[index].register_forward_hook(
            lambda block, args, y, index=index: keep(index, block, *args, y)
        )
        for index in set(chosen)
    ]
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return [found[index] for index in chosen]


def attention_weights(
    attention: Attention, x: Tensor, segment: Segment, queries: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """The weights [B * windows, h, queries, tokens] of one segment, and its values.

    `x` [B, windows * tokens, C] is what the attention gets: the norm of the block's input. Weights
    times values are what `scaled_dot_product_attention` gives it.
    """
    q, k, v = attention.heads(attention.qkv(x), segment)
    scores = q[:, :, queries] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1), v


def principal_colors(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Maps [rows, columns, C] as RGB in 0..1: their first three principal components, in common.

    Tokens are normalised one by one first, so that a few of large norm do not decide. Colors span
    the 1st to the 99th percentile of each component; a component's sign is that of its largest
    loading, so that equal maps have equal colors.
    """
    channels = maps[0].shape[-1]
    tokens = torch.cat([part.reshape(-1, channels) for part in maps]).double()
    tokens = F.layer_norm(tokens, (channels,))
    tokens = tokens - tokens.mean(dim=0)
    axes = torch.linalg.eigh(tokens.T @ tokens).eigenvectors[:, -3:].flip(1)  # [C, 3]
    largest = axes.abs().argmax(dim=0, keepdim=True)
    values = tokens @ (axes * axes.gather(0, largest).sign())
    low, high = (values.quantile(at, dim=0) for at in (0.01, 0.99))
    span = high - low
    flat = span <= 1e-9 * values.abs().max().clamp(min=1e-9)  # one patch, or all alike
    colors = torch.where(flat, 0.5, (values - low) / torch.where(flat, 1.0, span)).clamp(0, 1)
    sizes = [part.shape[0] * part.shape[1] for part in maps]
    return [
        part.view(*whole.shape[:2], 3).numpy()
        for part, whole in zip(colors.split(sizes), maps, strict=True)
    ]


def patch_in(grid: tuple[int, int], patch: tuple[int, int] | None) -> tuple[int, int]:
    """A patch (row, column) of a grid, None for the middle one; ValueError if it is outside."""
    if patch is None:
        return grid[0] // 2, grid[1] // 2
    if not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise ValueError(
            f"patch {patch[0]} {patch[1]} is outside of the image's {grid[0]} rows and "
            f"{grid[1]} columns of patches"
        )
    return tuple(patch)


def _patch_attention(
    block: Block,
    x: Tensor,
    segments: Sequence[Segment],
    groups: tuple[WindowGroup, ...],
    number: int,
    num_special: int,
) -> tuple[Tensor, Tensor]:
    """The attention of a patch, by its number in window order: [h, rows, columns] and [h, S]."""
    first_patch = first_token = 0
    for segment in segments:
        patches = segment.tokens - num_special  # of one window
        if number < first_patch + segment.windows * patches:
            break
        first_patch += segment.windows * patches
        first_token += segment.windows * segment.tokens
    window, place = divmod(number - first_patch, patches)
    first_patch += window * patches
    first_token += window * segment.tokens

    tokens = block.norm1(x[:, first_token : first_token + segment.tokens])
    query = slice(num_special + place, num_special + place + 1)
    weights, _ = attention_weights(block.attn, tokens, segment._replace(windows=1), query)
    weights = weights[0, :, 0]  # [h, tokens]
    total = sum(group.windows * group.patches for group in groups)
    placed = weights.new_full((1, total, len(weights)), float("nan"))
    placed[0, first_patch : first_patch + patches] = weights[:, num_special:].T
    return to_grid(placed, groups)[0].permute(2, 0, 1), weights[:, :num_special]
