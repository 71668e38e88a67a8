"""The arguments and inputs of RoPEViT: defaults and checks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.layers._tracing import is_traced
from ropevit_mmdet.weights.architectures import Arch, check_values

if TYPE_CHECKING:
    from ropevit_mmdet.models.backbones.rope_vit import RoPEViT


def block_indices(indices: int | Sequence[int] | None, arch: Arch) -> tuple[int, ...]:
    """`out_indices`, counted from 0; None: the architecture's own, else the last block."""
    if indices is None:
        indices = arch.out_indices or (arch.num_layers - 1,)
    indices = (indices,) if isinstance(indices, int) else tuple(indices)
    return tuple(i + arch.num_layers if i < 0 else i for i in indices)


def global_indices(indices: Sequence[int] | None, arch: Arch) -> tuple[int, ...]:
    """`global_attn_indices`; None: the last of each quarter of the blocks."""
    if indices is None:
        return tuple((i + 1) * arch.num_layers // 4 - 1 for i in range(4))
    return tuple(indices)


def check_arguments(
    model: RoPEViT, global_attn_indices: Sequence[int] | None, drop_path_rate: float
) -> None:
    """Raises UserError for the arguments that a model must not have, with their values."""
    arch, depth, patch = model.arch, model.arch.num_layers, model.patch_size
    size, window = model.pretrain_img_size, model.window_size
    rope: Any = model.rope_interpolation
    mode, stages, rate = model.pos_embed_mode, model.frozen_stages, drop_path_rate
    own, indices = arch.patch_size, global_attn_indices

    is_patch = _is_positive(patch) and (patch == own or arch.stem_type == "patchify")
    is_size = len(size) == 2 and all(_is_positive(n) and n % own == 0 for n in size)
    is_window = window is None or _is_positive(window)
    is_rope = rope in ("pretrain", "none") or _is_number(rope) and rope > 0
    is_global = all(0 <= i < depth for i in indices or ())
    is_used = indices is None or bool(window)
    ascending = f"ascending block indices below {depth}"
    check_values(
        (is_patch, "patch_size", "a positive integer (16 for an hmlp stem)", patch),
        (is_size, "pretrain_img_size", f"(height, width), multiples of patch size {own}", size),
        (is_window, "window_size", "None or a positive integer", window),
        (is_global, "global_attn_indices", f"block indices below {depth}", indices),
        (is_used, "global_attn_indices without window_size", "None", indices),
        (is_rope, "rope_interpolation", "'pretrain', 'none' or a number of pixels", rope),
        (mode in ("interpolate", "tile"), "pos_embed_mode", "'interpolate' or 'tile'", mode),
        (_is_ascending(model.out_indices, depth), "out_indices", ascending, model.out_indices),
        (_is_number(rate) and 0 <= rate <= 1, "drop_path_rate", "0 to 1", rate),
        (stages in range(-1, depth + 1), "frozen_stages", f"-1 to {depth}", stages),
    )


def check_images(images: Tensor) -> None:
    """Raises ValueError for images without pixels; warns of values that are not finite."""
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be [B, 3, H, W] with pixels, got {[*images.shape]}")
    if torch.compiler.is_exporting() and not all(type(side) is int for side in images.shape[2:]):
        raise UserError("a graph for any height and width: use `ropevit export --part features`")
    if type(images) is not Tensor or images.device.type != "cpu" or is_traced():
        return  # no values, or on a GPU, which reading them would stall
    if not images.isfinite().all():  # as in a warm-up with memory that is not initialized
        warnings.warn("images contain NaN or infinite values: so do feature maps", stacklevel=4)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_ascending(indices: tuple[int, ...], depth: int) -> bool:
    in_range = all(0 <= i < depth for i in indices)
    return bool(indices) and in_range and indices == tuple(sorted(set(indices)))
