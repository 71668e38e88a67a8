"""Features of a RoPE ViT per block: tokens, and the attention of one patch.

Registers take over what networks without them store in a few patches of large norm (arXiv
2309.16588). Principal components of patch tokens as colors: arXiv 2304.07193.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.block import Attention, Block
from ropevit_mmdet.models.layers.rope import Segment
from ropevit_mmdet.models.layers.windows import WindowGroup, merge_windows, to_grid, window_groups


@dataclass(frozen=True)
class BlockFeatures:
    """The output of a block and the attention of one patch; S special tokens, h heads.

    Special tokens are the registers, then the class token; after a windowed block they are the
    mean over windows, as the next global block receives them. The attention of a patch sums to 1
    over its window and the special tokens, and is NaN outside its window.
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
    """Runs the backbone and returns the features of some blocks.

    Args:
        backbone: a backbone in eval mode.
        image: normalized image [1, 3, H, W].
        blocks: indices of blocks; -1 is the last.
        patch: the (row, column) whose attention is taken, by default the center.

    Raises:
        UserError: a block or patch that does not exist.
    """
    rows, columns = (-(-side // backbone.patch_size) for side in image.shape[-2:])
    row, column = patch or center((rows, columns))
    depth = len(backbone.blocks)
    in_image = 0 <= row < rows and 0 <= column < columns
    if not in_image or not set(blocks) <= {*range(-depth, depth)}:
        raise UserError(
            f"the backbone has blocks 0 to {depth - 1} and the image {rows} rows and {columns} "
            f"columns of patches; got blocks {list(blocks)} and patch {row} {column}"
        )
    groups = window_groups((rows, columns), backbone.window_size)
    order = torch.arange(rows * columns).view(1, -1, 1)
    index = int(to_grid(order, groups)[0, row, column, 0])  # of the patch in window order
    calls: dict[nn.Module, tuple] = {}

    def keep(block: nn.Module, args: tuple, y: Tensor) -> None:
        calls[block] = (*args, y)

    with ExitStack() as hooks:
        for number in blocks:
            hooks.enter_context(backbone.blocks[number].register_forward_hook(keep))
        backbone(image)
    features = []
    for number in blocks:
        block = cast(Block, backbone.blocks[number])
        x, segments, y = calls[block]
        features.append(_features(number % depth, block, x, segments, y, groups, index))
    return features


def center(grid: Sequence[int]) -> tuple[int, int]:
    """The (row, column) of the patch at the center of a grid."""
    return grid[0] // 2, grid[1] // 2


def attention_weights(
    attention: Attention, x: Tensor, segment: Segment, queries: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Weights [B * windows, h, queries, tokens] and values [B * windows, h, tokens, D].

    `x` [B, windows * tokens, C] is the normalized input of the block in the windows of one segment.
    """
    q, k, v = attention.heads(attention.qkv(x), segment)
    scores = q[:, :, queries] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1), v


def principal_colors(feature_maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Renders the first three principal components of feature maps as RGB in 0..1.

    Components are common to all feature maps [rows, columns, C]. Each token is normalized first,
    so that tokens of large norm do not dominate. Colors span the 1st to the 99th percentile of a
    component; the sign of a component is that of its largest loading.
    """
    channels = feature_maps[0].shape[-1]
    tokens = torch.cat([one.reshape(-1, channels) for one in feature_maps]).double()
    tokens = F.layer_norm(tokens, (channels,))
    tokens = tokens - tokens.mean(dim=0)
    axes = torch.linalg.eigh(tokens.T @ tokens).eigenvectors[:, -3:].flip(1)  # [C, 3]
    largest = axes.abs().argmax(dim=0, keepdim=True)
    values = tokens @ (axes * axes.gather(0, largest).sign())
    low, high = (values.quantile(at, dim=0) for at in (0.01, 0.99))
    colors = ((values - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    parts = colors.split([one.shape[0] * one.shape[1] for one in feature_maps])
    return [part.view(*one.shape[:2], 3).numpy() for part, one in zip(parts, feature_maps)]


def _features(
    number: int,
    block: Block,
    x: Tensor,
    segments: Sequence[Segment],
    y: Tensor,
    groups: tuple[WindowGroup, ...],
    index: int,
) -> BlockFeatures:
    """Features of a block with input x and output y; index: of the patch in window order."""
    windows = [segment for segment in segments for _ in range(segment.windows)]
    num_patches = sum(group.windows * group.patches for group in groups)
    num_special = (x.shape[1] - num_patches) // len(windows)
    first_patch = first_token = 0
    for window in windows:
        patches = window.tokens - num_special
        if index < first_patch + patches:
            break
        first_patch += patches
        first_token += window.tokens
    tokens = block.norm1(x[:, first_token : first_token + window.tokens])
    query = num_special + index - first_patch
    segment = window._replace(windows=1)
    weights, _ = attention_weights(block.attn, tokens, segment, slice(query, query + 1))
    weights = weights[0, :, 0]  # [h, tokens]
    placed = weights.new_full((1, num_patches, len(weights)), float("nan"))
    placed[0, first_patch : first_patch + patches] = weights[:, num_special:].T
    if len(windows) > 1:
        y = merge_windows(y, groups, num_special)
    return BlockFeatures(
        block=number,
        windowed=len(windows) > 1,
        patches=to_grid(y[:, num_special:], groups)[0].cpu(),
        special=y[0, :num_special].cpu(),
        attention=to_grid(placed, groups)[0].permute(2, 0, 1).cpu(),
        special_attention=weights[:, :num_special].cpu(),
    )
