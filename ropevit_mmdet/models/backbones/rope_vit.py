"""RoPEViT: birder's RoPE ViT as an mmdet backbone.

Papers: RoPE for ViT, arXiv 2403.13298; plain-ViT detection, arXiv 2203.16527. Reference
implementation: birder 0.8.4, `birder/net/rope_vit.py` (`detection_features`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from ropevit_mmdet.models.backbones._arguments import (
    block_indices,
    check_arguments,
    check_images,
    global_indices,
)
from ropevit_mmdet.models.layers.block import Block
from ropevit_mmdet.models.layers.norm import norm_layer
from ropevit_mmdet.models.layers.patch_embed import PatchEmbed, resample_patch_kernel
from ropevit_mmdet.models.layers.rope import Rope, RopeTables, Segment
from ropevit_mmdet.models.layers.windows import (
    WindowGroup,
    merge_windows,
    split_windows,
    to_grid,
    to_window_order,
    window_groups,
)
from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import (
    Checkpoint,
    check_arch,
    check_fit,
    check_img_size,
    load_into,
    read_checkpoint,
    read_pretrained,
)
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import summary

_EMBEDDINGS = ("pos_embed", "cls_token", "reg_tokens")


@MODELS.register_module()
class RoPEViT(BaseModule):
    """A RoPE Vision Transformer that returns its patch tokens as feature maps.

    Args:
        arch: name in birder or timm, or a dict with the keys of birder's network config.
        pretrain_img_size: pixels, int or (height, width): the image size of the pretraining.
        patch_size: pixels; if it differs from the architecture's, the patch kernel is resampled
            when weights are loaded, and the pretraining grid stays.
        window_size: patches; None: every block attends globally.
        global_attn_indices: blocks that attend globally although there are windows; default: the
            last of each quarter of the blocks; () for none.
        rope_interpolation: how global attention fits the pretraining grid to the input: 'pretrain'
            stretches it over the input's grid, 'none' follows the architecture, a number of pixels
            is the side that spans it whatever the input's size.
        pos_embed_mode: 'interpolate' or 'tile' the position embedding over other grids.
        out_indices: blocks whose feature maps are returned, ascending; default: the last one.
        final_norm: apply the encoder's last norm, to the last block's feature map only.
        drop_path_rate: 0 to 1, sampled per image; default: the architecture's.
        frozen_stages: -1 nothing, 0 the embedding, k the embedding and the first k blocks; all
            blocks also freeze the final norm.
        with_cp: activation checkpointing, non-reentrant.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` loads a checkpoint of birder, timm,
            transformers, Meta or this package, strictly; with `prefix` the part that has it.

    Raises:
        UserError: invalid arguments, with their values.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = "rope_vit_reg4_b14",
        *,
        pretrain_img_size: int | Sequence[int] = 224,
        patch_size: int | None = None,
        window_size: int | None = None,
        global_attn_indices: Sequence[int] | None = None,
        rope_interpolation: str | int | float = "pretrain",
        pos_embed_mode: str = "interpolate",
        out_indices: int | Sequence[int] | None = None,
        final_norm: bool = True,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = arch = resolve_arch(arch)
        self.patch_size = arch.patch_size if patch_size is None else patch_size
        size = pretrain_img_size
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        self.pretrain_img_size = cast(tuple[int, int], sides)  # of two: check_arguments
        self.out_indices = block_indices(out_indices, arch)
        self.window_size = window_size
        self.global_attn_indices = global_indices(global_attn_indices, arch)
        self.rope_interpolation = rope_interpolation
        self.pos_embed_mode = pos_embed_mode
        self.frozen_stages = frozen_stages
        drop_path_rate = arch.drop_path_rate if drop_path_rate is None else drop_path_rate
        check_arguments(self, global_attn_indices, drop_path_rate)
        self._build(final_norm, drop_path_rate, with_cp)
        self._init_parameters()
        self._freeze()

    @property
    def pretrain_grid(self) -> tuple[int, int]:
        """(rows, columns) in patches of the pretraining images."""
        height, width = self.pretrain_img_size
        return height // self.arch.patch_size, width // self.arch.patch_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of normalized images.

        Args:
            images: [B, 3, H, W], any H and W.

        Returns:
            One feature map [B, C, ceil(H / patch), ceil(W / patch)] per out_index.

        Raises:
            ValueError: images without pixels. NaN or infinite values, on a CPU, are a warning.
        """
        outputs, _, groups = self.encode(images)
        patches = [tokens[:, self.arch.num_special_tokens :] for tokens in outputs]
        patches[-1] = self.norm(patches[-1])
        return tuple(to_grid(tokens, groups).permute(0, 3, 1, 2) for tokens in patches)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """All tokens after the last block that is built, for the head of a classifier.

        Args:
            images: as for `forward`.

        Returns:
            [B, S + N, C], normalized as the feature map: registers, class token, then the patches,
            row by row without windows and in window order with them.

        Raises:
            ValueError: as for `forward`.
        """
        outputs, _, _ = self.encode(images)
        return self.norm(outputs[-1])

    def init_weights(self) -> None:
        """Loads the checkpoint of `init_cfg`, strictly; without one, random weights stay."""
        if checkpoint := read_pretrained(self.init_cfg):
            self._load(checkpoint)
            self._is_init = True
        else:
            super().init_weights()

    def load_pretrained(self, path: str | Path) -> None:
        """Loads a checkpoint of birder, timm, transformers, Meta or this package.

        Args:
            path: a file, a URL, `birder://NAME` or `timm://NAME`, as for `resolve_weights`.

        Raises:
            UserError: no such file, or weights that do not fit, with the line to paste.
        """
        self._load(read_checkpoint(resolve_weights(path)))

    def train(self, mode: bool = True) -> RoPEViT:
        """Sets the mode; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def run_blocks(
        self,
        x: Tensor,
        global_segments: Sequence[Segment],
        window_segments: Sequence[Segment],
        *,
        split: Callable[[Tensor], Tensor],
        merge: Callable[[Tensor], Tensor],
        indices: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Runs blocks, changing between the merged and the split layout of `windows`.

        Args:
            x: merged tokens [B, S + N, C].
            global_segments: segments of merged tokens.
            window_segments: segments of split tokens.
            split: from merged to split tokens.
            merge: from split to merged tokens.
            indices: blocks, ascending; default: `out_indices`. None runs after the last.

        Returns:
            Merged tokens [B, S + N, C] after every block of `indices`.
        """
        indices = self.out_indices if indices is None else indices
        outputs, is_split = [], False
        for i, block in zip(range(indices[-1] + 1), self.blocks):
            windowed = self.window_size is not None and i not in self.global_attn_indices
            if windowed != is_split:
                x = split(x) if windowed else merge(x)
            is_split = windowed
            x = block(x, window_segments if windowed else global_segments)
            if i in indices:
                outputs.append(merge(x) if is_split else x)
        return outputs

    def add_special_tokens(self, tokens: Tensor) -> Tensor:
        """Puts registers and class token, with their positions, before patches: [B, S + N, C]."""
        arch = self.arch
        names = [name for name in ("reg_tokens", "cls_token") if hasattr(self, name)]
        if not names:
            return tokens
        special = torch.cat([getattr(self, name) for name in names], dim=1)  # [1, S, C]
        if arch.abs_pos_embed and arch.pos_embed_special_tokens:
            special = special + self.pos_embed[:, : arch.num_special_tokens]
        special = special.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat((special, tokens), dim=1)

    def grid_pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding [1, rows, columns, C] of a grid (rows, columns)."""
        if grid == self.pretrain_grid:
            return self.pretrain_pos_embed()
        if self.pos_embed_mode == "interpolate":
            return self.interpolated_pos_embed(grid)
        rows, columns = self.pretrain_grid
        repeats = (1, -(-grid[0] // rows), -(-grid[1] // columns), 1)
        return self.pretrain_pos_embed().repeat(repeats)[:, : grid[0], : grid[1]]

    def interpolated_pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding resized to a grid, in float32 whatever its dtype, as in birder."""
        embed = self.pretrain_pos_embed()
        resized = F.interpolate(
            embed.permute(0, 3, 1, 2).float(),
            size=grid,
            mode=self.arch.pos_embed_interpolation_mode,
            antialias=self.arch.pos_embed_antialias,
        )
        return resized.permute(0, 2, 3, 1).to(embed.dtype)

    def pretrain_pos_embed(self) -> Tensor:
        """The position embedding of patches, [1, rows, columns, C] of the pretraining grid."""
        arch = self.arch
        special = arch.num_special_tokens if arch.pos_embed_special_tokens else 0
        return self.pos_embed[:, special:].reshape(1, *self.pretrain_grid, arch.hidden_dim)

    def _load(self, checkpoint: Checkpoint) -> None:
        state, source = dict(checkpoint.state), str(checkpoint.path)
        if checkpoint.origin != "mmengine":
            check_arch(checkpoint, self.arch)
            check_img_size(checkpoint, self.arch, self.pretrain_img_size)
            if (kernel := "patch_embed.proj.weight") in state:
                state[kernel] = resample_patch_kernel(state[kernel], self.patch_size)
            check_fit(self._full_state(normed=not checkpoint.is_detector), state, source)
            state = {key: state[key] for key in self.state_dict()}
        load_into(self, state, source)
        MMLogger.get_current_instance().info(summary(checkpoint, state))

    def encode(
        self, images: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[list[Tensor], list[Segment], tuple[WindowGroup, ...]]:
        """Embeds images and runs the blocks up to the last of `indices` (default: `out_indices`).

        Returns:
            Merged tokens [B, S + N, C] after every block of `indices`, the segments of a global
            block, and the windows of the grid.
        """
        check_images(images)
        grid_map = self.patch_embed(images)  # [B, rows, columns, C]
        # torch.jit.trace, with which mmengine counts FLOPs, gives tensors for sizes.
        rows, columns = (int(n) if isinstance(n, Tensor) else n for n in grid_map.shape[1:3])
        groups = window_groups((rows, columns), self.window_size)
        segments = self.rope_tables.segments(  # samples its noise before dropout, as birder does
            (rows, columns), groups, device=grid_map.device, training=self.training
        )
        if self.arch.abs_pos_embed:
            grid_map = grid_map + self.grid_pos_embed((rows, columns))
        x = self.add_special_tokens(to_window_order(grid_map, groups))
        x = self.pre_norm(self.pos_drop(x))
        layout: dict[str, Any] = dict(groups=groups, num_special=self.arch.num_special_tokens)
        outputs = self.run_blocks(
            x,
            *segments,
            split=partial(split_windows, **layout),
            merge=partial(merge_windows, **layout),
            indices=indices,
        )
        return outputs, segments[0], groups

    def _build(self, final_norm: bool, drop_path_rate: float, with_cp: bool) -> None:
        """Makes the parameters and layers; nothing that the last out_index does not need."""
        arch, dim = self.arch, self.arch.hidden_dim
        depth = self.out_indices[-1] + 1
        self.patch_embed = PatchEmbed(arch, self.patch_size)
        if arch.num_reg_tokens:
            self.reg_tokens = nn.Parameter(torch.zeros(1, arch.num_reg_tokens, dim))
        if arch.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if arch.abs_pos_embed:
            special = arch.num_special_tokens if arch.pos_embed_special_tokens else 0
            rows, columns = self.pretrain_grid
            self.pos_embed = nn.Parameter(torch.zeros(1, special + rows * columns, dim))
        self.pos_drop = nn.Dropout(arch.dropout)
        self.pre_norm = norm_layer(arch)(dim) if arch.pre_norm else nn.Identity()
        cpu: dict[str, Any] = dict(dtype=torch.float32, device="cpu")  # whatever the defaults
        rates = torch.linspace(0, drop_path_rate, arch.num_layers, **cpu).tolist()
        if arch.drop_path_uniform:
            rates = [drop_path_rate] * arch.num_layers
        self.blocks = nn.ModuleList(Block(arch, rates[i], with_cp=with_cp) for i in range(depth))
        normed = final_norm and arch.has_final_norm and depth == arch.num_layers
        self.norm = norm_layer(arch)(dim) if normed else nn.Identity()
        self.rope_tables = self._rope_tables()

    def _rope_tables(self) -> RopeTables:
        arch, mode = self.arch, self.rope_interpolation
        own = Rope(
            head_dim=arch.head_dim,
            temperature=arch.rope_temperature,
            style=arch.rope_style,
            rotation=arch.rope_rot_type,
            indexing=arch.rope_grid_indexing,
            offset=arch.rope_grid_offset,
            pt_grid=arch.pt_grid_size,
            shift=arch.rope_shift_coords,
            jitter=arch.rope_jitter_coords,
            rescale=arch.rope_rescale_coords,
        )
        fitted = dataclasses.replace(own, pt_grid=arch.pt_grid_size or self.pretrain_grid)
        return RopeTables(
            own,
            own if mode == "none" else fitted,
            num_special=arch.num_special_tokens,
            window_size=self.window_size,
            period=None if isinstance(mode, str) else mode / self.patch_size,
        )

    def _full_state(self, *, normed: bool) -> dict[str, Tensor]:
        """The state dict that all blocks and the final norm of the architecture would have."""
        arch, tensors = self.arch, dict(self.state_dict())
        block = self.blocks[0].state_dict()
        for i in range(len(self.blocks), arch.num_layers):
            tensors |= {f"blocks.{i}.{key}": value for key, value in block.items()}
        if arch.has_final_norm and normed:
            norm = norm_layer(arch)(arch.hidden_dim).state_dict()
            tensors |= {f"norm.{key}": value for key, value in norm.items()}
        return tensors

    def _init_parameters(self) -> None:
        for name in _EMBEDDINGS:
            if hasattr(self, name):
                nn.init.trunc_normal_(getattr(self, name), std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        frozen = [self.patch_embed, self.pos_drop, self.pre_norm]
        frozen += self.blocks[: self.frozen_stages]
        if self.frozen_stages >= len(self.blocks):
            frozen.append(self.norm)
        return frozen

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for name in _EMBEDDINGS:
                if hasattr(self, name):
                    getattr(self, name).requires_grad_(False)
        for module in self._frozen_modules():
            module.requires_grad_(False).eval()
