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
from ropevit_mmdet.models.layers.windows import (
    merge_windows,
    split_windows,
    to_grid,
    to_window_order,
    window_groups,
)


@dataclass(frozen=True)
class BlockFeatures:
    """The output of a block and the attention of one patch; S special tokens, h heads.

    Special tokens are the registers, then the class token; after a windowed block they are the
    mean over windows, as the next global block receives them. The attention of a patch sums to 1
    over its window and the special tokens, and is NaN outside its window.
    """

    block: int
    windowed: bool
    patch: tuple[int, int]  # (row, column)
    patch_size: int
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
    row, column = patch or (rows // 2, columns // 2)
    depth = len(backbone.blocks)
    in_image = 0 <= row < rows and 0 <= column < columns
    if not in_image or not set(blocks) <= {*range(-depth, depth)}:
        raise UserError(
            f"the backbone has blocks 0 to {depth - 1} and the image {rows} rows and {columns} "
            f"columns of patches; got blocks {list(blocks)} and patch {row} {column}"
        )
    calls: dict[nn.Module, tuple] = {}

    def keep(block: nn.Module, args: tuple, y: Tensor) -> None:
        calls[block] = (*args, y)

    with ExitStack() as hooks:
        for number in blocks:
            hooks.enter_context(backbone.blocks[number].register_forward_hook(keep))
        backbone(image)
    groups = window_groups((rows, columns), backbone.window_size)
    num_special = backbone.arch.num_special_tokens
    order = to_window_order(torch.arange(rows * columns).view(1, rows, columns, 1), groups)
    merged = torch.cat((order.new_full((1, num_special, 1), -1), order), dim=1)
    split = split_windows(merged, groups, num_special)
    features = []
    for number in blocks:
        block = cast(Block, backbone.blocks[number])
        x, segments, y = calls[block]
        windowed = sum(segment.windows for segment in segments) > 1
        places = (split if windowed else merged)[0, :, 0]
        weights, of_window = _attention(row * columns + column, block, x, segments, places)
        attention = weights.new_full((len(weights), rows * columns), float("nan"))
        attention[:, of_window[num_special:]] = weights[:, num_special:]
        y = (merge_windows(y, groups, num_special) if windowed else y).cpu()
        features.append(
            BlockFeatures(
                block=number % depth,
                windowed=windowed,
                patch=(row, column),
                patch_size=backbone.patch_size,
                patches=to_grid(y[:, num_special:], groups)[0],
                special=y[0, :num_special],
                attention=attention.view(-1, rows, columns),
                special_attention=weights[:, :num_special],
            )
        )
    return features


def attention_weights(
    attention: Attention, x: Tensor, segment: Segment, queries: slice = slice(None)
) -> Tensor:
    """Weights [B * windows, h, queries, tokens].

    `x` [B, windows * tokens, C] is the normalized input of the block in the windows of one segment.
    """
    q, k, _ = attention.heads(attention.qkv(x), segment)
    scores = q[:, :, queries] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)


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


def _attention(
    patch: int, block: Block, x: Tensor, segments: Sequence[Segment], places: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention [h, tokens] of a patch in a block with input x, and the places of the tokens.

    `places` [tokens] are the indices of the patches in the grid; -1 for special tokens.
    """
    windows = [segment._replace(windows=1) for segment in segments for _ in range(segment.windows)]
    sizes = [window.tokens for window in windows]
    parts = zip(windows, x.split(sizes, dim=1), places.split(sizes))
    window, tokens, of_window = next(part for part in parts if patch in part[2])
    query = of_window.tolist().index(patch)
    tokens = block.norm1(tokens)
    weights = attention_weights(block.attn, tokens, window, slice(query, query + 1))
    return weights[0, :, 0].cpu(), of_window
