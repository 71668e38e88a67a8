"""RoPEViT: birder's RoPE ViT as a mmdet backbone.

Papers: RoPE for ViT, arXiv 2403.13298; plain-ViT detection, arXiv 2203.16527. Reference
implementation: birder 0.8.4, ``birder/net/rope_vit.py`` (``detection_features``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from ropevit_mmdet.compat.primitives import bound_caches
from ropevit_mmdet.models.backbones._arguments import (
    block_indices,
    drop_path_rates,
    global_indices,
    size_pair,
)
from ropevit_mmdet.models.layers.block import Block, PatchEmbed, norm_layer
from ropevit_mmdet.models.layers.resample import resample_patch_kernel
from ropevit_mmdet.models.layers.rope import Rope
from ropevit_mmdet.models.layers.rope_tables import RopeTables
from ropevit_mmdet.models.layers.windows import (
    WindowGroup,
    merge_windows,
    split_windows,
    to_grid,
    to_window_order,
    window_groups,
)
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.checkpoint import (
    check_arch,
    check_fit,
    check_img_size,
    load_into,
    read_checkpoint,
)
from ropevit_mmdet.weights.identify import summary
from ropevit_mmdet.weights.lookup import resolve_weights


@MODELS.register_module()
class RoPEViT(BaseModule):
    """A RoPE Vision Transformer that returns its patch tokens as feature maps.

    Args:
        arch: birder network name, or a dict with the keys of birder's network config.
        pretrain_img_size: pixels, int or (height, width): the size the weights were trained at.
        patch_size: pixels; another patch size than the architecture's: the patch kernel is
            resampled at load, the pretraining grid stays.
        window_size: patches; None: every block attends globally.
        global_attn_indices: blocks that attend globally when windowed; default the last of each
            quarter of the blocks, () for none.
        rope_interpolation: how global attention fits the pretraining grid to the input:
            'pretrain' stretches it over the input's grid, 'none' is the architecture's own way,
            a number of pixels lets a side of that length span it whatever the input's size.
        pos_embed_mode: 'interpolate' or 'tile' the position embedding over larger grids.
        out_indices: blocks whose maps are returned; default the last one only.
        final_norm: the encoder's last norm, on the last block's map only.
        drop_path_rate: default the architecture's; drawn per image.
        frozen_stages: -1 nothing, 0 the embedding, k the embedding and the first k blocks, depth
            everything.
        with_cp: activation checkpointing, non-reentrant.
        init_cfg: ``dict(type='Pretrained', checkpoint=path)`` reads a birder checkpoint or one of
            ours, strictly.

    Raises:
        ValueError: an argument out of range, named with its value.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "rope_vit_reg4_b14",
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
        bound_caches()
        self.arch = arch = resolve_arch(arch)
        self.patch_size = arch.patch_size if patch_size is None else patch_size
        self.pretrain_img_size = size_pair(pretrain_img_size)
        self.out_indices = block_indices(out_indices, arch)
        self.window_size = window_size
        self.global_attn_indices = global_indices(global_attn_indices, window_size, arch)
        self.rope_interpolation = rope_interpolation
        self.pos_embed_mode = pos_embed_mode
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self._check_arguments()

        dim, depth = arch.hidden_dim, self.out_indices[-1] + 1
        rates = drop_path_rates(arch, drop_path_rate)
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
        self.blocks = nn.ModuleList(Block(arch, rates[i]) for i in range(depth))
        normed = final_norm and arch.has_final_norm and depth == arch.num_layers
        self.norm = norm_layer(arch)(dim) if normed else nn.Identity()

        self.rope_tables = self._rope_tables()
        self._init_parameters()
        self._freeze()

    @property
    def pretrain_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the weights were trained with."""
        height, width = self.pretrain_img_size
        return height // self.arch.patch_size, width // self.arch.patch_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of normalised images.

        Args:
            images: [B, 3, H, W], any H and W.

        Returns:
            One map [B, C, ceil(H / patch), ceil(W / patch)] per out_index.

        Raises:
            ValueError: images of no pixels, or (on CPU) with values that are not finite.
        """
        outputs, groups = self._encode(images)
        patches = [tokens[:, self.arch.num_special_tokens :] for tokens in outputs]
        patches[-1] = self.norm(patches[-1])
        return tuple(to_grid(tokens, groups).permute(0, 3, 1, 2) for tokens in patches)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """All tokens after the last block that is built, as a classifier's head takes them.

        Args:
            images: as for ``forward``.

        Returns:
            [B, S + N, C], normed as the map is: registers, class token, then the patches, row by
            row without windows and in window order with them.
        """
        outputs, _ = self._encode(images)
        return self.norm(outputs[-1])

    def init_weights(self) -> None:
        """Loads the checkpoint of ``init_cfg``, strictly; without one the random weights stay."""
        if self.init_cfg and self.init_cfg.get("type") == "Pretrained":
            self.load_pretrained(self.init_cfg["checkpoint"])
            self._is_init = True
        else:
            super().init_weights()

    def load_pretrained(self, path: str) -> None:
        """Copies a birder checkpoint, or one of ours, into the model.

        Args:
            path: a file, an http(s) URL or ``birder://NAME``: see
                ``weights.lookup.resolve_weights``.

        Raises:
            FileNotFoundError, ValueError, DownloadError: see ``weights.lookup.resolve_weights``
                and ``checkpoint.read_checkpoint``; also weights of another architecture or image
                size, with the line to paste.
        """
        path = resolve_weights(path)
        checkpoint = read_checkpoint(path)
        state = dict(checkpoint.state)
        if checkpoint.origin == "birder":
            check_arch(checkpoint, self.arch)
            check_img_size(checkpoint, self.arch, self.pretrain_img_size)
            kernel = "patch_embed.proj.weight"
            if kernel in state:
                state[kernel] = resample_patch_kernel(state[kernel], self.patch_size)
            check_fit(self._whole_encoder(), state, source=str(path))
            state = {key: state[key] for key in self.state_dict()}
        load_into(self, state, source=str(path))
        MMLogger.get_current_instance().info(summary(checkpoint, state))

    def train(self, mode: bool = True) -> RoPEViT:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _encode(self, images: Tensor) -> tuple[list[Tensor], tuple[WindowGroup, ...]]:
        """Merged tokens [B, S + N, C] after every out_index, and the windows that order them."""
        _check_images(images)
        grid_map = self.patch_embed(images)
        grid = _grid_of(grid_map)
        groups = window_groups(grid, self.window_size)
        whole, windows = self.rope_tables.segments(  # before dropout: birder's order of draws
            grid, groups, device=grid_map.device, training=self.training
        )
        x = self.pre_norm(self.pos_drop(self._embed(grid_map, groups)))

        checkpointed = self.with_cp and self.training and torch.is_grad_enabled()
        outputs, num_special, split = [], self.arch.num_special_tokens, False
        for i, block in enumerate(self.blocks):
            windowed = self.window_size is not None and i not in self.global_attn_indices
            if windowed and not split:
                x = split_windows(x, groups, num_special)
            elif split and not windowed:
                x = merge_windows(x, groups, num_special)
            split = windowed
            segments = windows if windowed else whole
            x = block(x, segments, checkpointed=checkpointed)  # as a call: FSDP wraps the block
            if i in self.out_indices:
                outputs.append(merge_windows(x, groups, num_special) if split else x)
        return outputs, groups

    def _embed(self, grid_map: Tensor, groups: tuple[WindowGroup, ...]) -> Tensor:
        """Merged tokens [B, S + N, C]: special tokens, then patches, with their positions."""
        arch, grid = self.arch, _grid_of(grid_map)
        special = [
            getattr(self, name) for name in ("reg_tokens", "cls_token") if hasattr(self, name)
        ]
        if arch.abs_pos_embed:
            grid_map = grid_map + self._grid_pos_embed(grid)
        tokens = to_window_order(grid_map, groups)
        if not special:
            return tokens
        special = torch.cat(special, dim=1)  # [1, S, C]
        if arch.abs_pos_embed and arch.pos_embed_special_tokens:
            special = special + self.pos_embed[:, : arch.num_special_tokens]
        return torch.cat((special.to(tokens.dtype).expand(len(tokens), -1, -1), tokens), dim=1)

    def _grid_pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding [1, rows, columns, C] of a grid."""
        arch, (rows, columns) = self.arch, self.pretrain_grid
        special = arch.num_special_tokens if arch.pos_embed_special_tokens else 0
        embed = self.pos_embed[:, special:].reshape(1, rows, columns, -1)
        if grid == (rows, columns):
            return embed
        if self.pos_embed_mode == "tile":
            repeats = (1, -(-grid[0] // rows), -(-grid[1] // columns), 1)
            return embed.repeat(repeats)[:, : grid[0], : grid[1]]
        resized = F.interpolate(
            embed.permute(0, 3, 1, 2).float(),  # float32 in float64 models too, as birder
            size=grid,
            mode=arch.pos_embed_interpolation_mode,
            antialias=arch.pos_embed_antialias,
        )
        return resized.permute(0, 2, 3, 1).to(embed.dtype)

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

    def _check_arguments(self) -> None:
        arch = self.arch
        if not isinstance(self.patch_size, int) or self.patch_size < 1:
            raise ValueError(f"patch_size must be a positive integer, got {self.patch_size!r}")
        if self.patch_size != arch.patch_size and arch.stem_type != "patchify":
            raise ValueError(f"patch_size {self.patch_size}: a hmlp stem cannot be resampled")
        if any(side < 1 or side % arch.patch_size for side in self.pretrain_img_size):
            raise ValueError(
                f"pretrain_img_size {self.pretrain_img_size} is not a multiple of the patch size "
                f"{arch.patch_size}"
            )
        window = self.window_size
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(f"window_size must be None or a positive integer, got {window!r}")
        if self.pos_embed_mode not in ("interpolate", "tile"):
            raise ValueError(
                f"pos_embed_mode must be 'interpolate' or 'tile', got {self.pos_embed_mode!r}"
            )
        rope = self.rope_interpolation
        pixels = isinstance(rope, (int, float)) and not isinstance(rope, bool) and rope > 0
        if rope not in ("pretrain", "none") and not pixels:
            raise ValueError(
                f"rope_interpolation must be 'pretrain', 'none' or a number of pixels, got {rope!r}"
            )
        stages = self.frozen_stages
        if not isinstance(stages, int) or not -1 <= stages <= arch.num_layers:
            raise ValueError(f"frozen_stages must be -1 to {arch.num_layers}, got {stages!r}")

    def _whole_encoder(self) -> dict[str, Tensor]:
        """Names and shapes of all of the architecture's weights, those not built here too."""
        arch, tensors = self.arch, dict(self.state_dict())
        block = self.blocks[0].state_dict()
        for i in range(len(self.blocks), arch.num_layers):
            tensors |= {f"blocks.{i}.{key}": value for key, value in block.items()}
        if arch.has_final_norm:
            norm = norm_layer(arch)(arch.hidden_dim).state_dict()
            tensors |= {f"norm.{key}": value for key, value in norm.items()}
        return tensors

    def _init_parameters(self) -> None:
        for name in ("pos_embed", "cls_token", "reg_tokens"):
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
            for name in ("pos_embed", "cls_token", "reg_tokens"):
                if hasattr(self, name):
                    getattr(self, name).requires_grad_(False)
        for module in self._frozen_modules():
            module.requires_grad_(False).eval()


def _grid_of(grid_map: Tensor) -> tuple[int, int]:
    """(rows, columns) of a map [B, rows, columns, C].

    torch.jit.trace, by which mmengine counts operations, gives tensors for numbers.
    """
    rows, columns = (
        int(side) if isinstance(side, Tensor) else side for side in grid_map.shape[1:3]
    )
    return rows, columns


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be [B, 3, H, W] with pixels in them, got {[*images.shape]}")
    if torch.compiler.is_compiling() or images.device.type != "cpu":
        return  # a look at the values would stall the device
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
