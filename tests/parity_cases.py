"""What is compared with birder: every architecture made small, and every switch of its config.

The tests (`test_parity_architectures`) and the table of `docs/parity.md` (`parity_table`) share it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.weights.architectures import ACTIVATION_NAMES, arch_names, resolve_arch
from ropevit_mmdet.weights.published import WEIGHTS
from tests.oracle import SMALL, birder_net, relative_error, seeded_images, write_checkpoint

GRID = 5  # patches of a side at pretraining
GRIDS = ((5, 5), (8, 8), (8, 6), (3, 4))  # as pretrained, larger, not square, smaller
CUT = dict(num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48)
BASE = SMALL | CUT | dict(patch_size=16)

_HMLP = dict(stem_type="hmlp")
_CENTERED = dict(rope_style="centered_separate")
_INTERLEAVED = dict(rope_rot_type="interleaved")
_SWIGLU = dict(mlp_layer_type="SwiGLU_FFN")
_NORM_SWIGLU = dict(mlp_layer_type="Norm_SwiGLU_FFN", attn_norm=True)
_DROPOUTS = dict(dropout=0.2, attention_dropout=0.1, projection_dropout=0.3)
_NOISE = dict(rope_shift_coords=0.25, rope_jitter_coords=1.4, rope_rescale_coords=2.0)

# Name -> overrides of BASE: what no entry of birder uses, or no other entry uses separately.
SWITCHES: dict[str, dict[str, Any]] = {
    "hmlp": _HMLP,
    "hmlp, LayerNorm2d": _HMLP | dict(stem_norm_layer_type="LayerNorm2d"),
    "hmlp, BatchNorm2d": _HMLP | dict(stem_norm_layer_type="BatchNorm2d"),
    "hmlp, pre-norm": _HMLP | dict(pre_norm=True),
    **{f"activation {name}": dict(act_layer_type=name) for name in ACTIVATION_NAMES},
    "SwiGLU, activation prelu": _SWIGLU | dict(act_layer_type="prelu"),
    "SwiGLU, activation gelu": _SWIGLU | dict(act_layer_type="gelu"),
    "NormFormer, RMSNorm": _NORM_SWIGLU | dict(norm_layer_type="RMSNorm", norm_layer_eps=1e-3),
    "norm after pool": dict(norm_after_pool=True),
    "no post-norm": dict(post_norm=False),
    "no post-norm, norm after pool": dict(post_norm=False, norm_after_pool=True),
    "pre-norm": dict(pre_norm=True),
    "dropouts": _DROPOUTS,
    "dropouts, pre-norm": _DROPOUTS | dict(pre_norm=True),
    "dropouts, NormFormer, drop path": _DROPOUTS | _NORM_SWIGLU | dict(drop_path_rate=0.3),
    "drop path, uniform": dict(drop_path_rate=0.4, drop_path_uniform=True),
    "position embedding bilinear": dict(pos_embed_interpolation_mode="bilinear"),
    "position embedding antialiased": dict(pos_embed_antialias=True),
    "position embedding of patches only": dict(pos_embed_special_tokens=False),
    "no position embedding": dict(abs_pos_embed=False),
    "no bias in qkv": dict(qkv_bias=False),
    "QK-norm": dict(qk_norm=True),
    "QK-norm, RMSNorm": dict(qk_norm=True, norm_layer_type="RMSNorm"),
    "attention norm": dict(attn_norm=True),
    "LayerScale": dict(layer_scale_init_value=0.1),
    "16 registers": dict(num_reg_tokens=16),
    "no special tokens": dict(num_reg_tokens=0, class_token=False),
    "odd mlp_dim": dict(mlp_dim=37),
    "odd mlp_dim, SwiGLU": _SWIGLU | dict(mlp_dim=37),
    "heads of 4 channels": dict(num_heads=8),
    "offset": dict(rope_grid_offset=3),
    "temperature": dict(rope_temperature=17.5),
    "interleaved": _INTERLEAVED,
    "indexing xy": dict(rope_grid_indexing="xy"),
    "indexing xy, interleaved, offset": _INTERLEAVED
    | dict(rope_grid_indexing="xy", rope_grid_offset=1),
    "pt_grid_size": dict(pt_grid_size=(7, 4)),
    "pt_grid_size, indexing xy": dict(pt_grid_size=(7, 4), rope_grid_indexing="xy"),
    "axial": _INTERLEAVED | dict(rope_style="axial"),
    "centered": _CENTERED,
    "centered, shift": _CENTERED | dict(rope_shift_coords=0.25),
    "centered, jitter": _CENTERED | dict(rope_jitter_coords=1.4),
    "centered, rescale": _CENTERED | dict(rope_rescale_coords=2.0),
    "centered, all noise": _CENTERED | _NOISE | dict(drop_path_rate=0.4),
    "centered, all noise, dropouts": _CENTERED | _NOISE | _DROPOUTS,
    "out_indices": dict(out_indices=[0, 1]),
    "out_indices from the end": dict(out_indices=[-2]),
    "head of layers": dict(mlp_head=True, attn_pool_head=True, attn_pool_num_heads=4),
    "head without bias": dict(head_bias=False, attn_pool_head=True),
    "a probe for a head": dict(attn_pool_head=True, attn_pool_type="EfficientProbing"),
}


def birder_config(name: str) -> dict[str, Any]:
    """The config under which birder registers a network."""
    import birder.net  # noqa: F401  (registers the networks)
    from birder.model_registry import registry

    return copy.deepcopy(dict(registry.all_nets[name].config))


def small_config(name: str) -> dict[str, Any]:
    """The same, with fewer and narrower blocks: everything else as registered."""
    return birder_config(name) | CUT


def distinct_archs(**fields: Any) -> list[str]:
    """A name for each architecture that still differs with small blocks and the same `fields`."""
    same = CUT | dict(drop_path_rate=0.0) | fields
    names = {replace(resolve_arch(name), **same): name for name in reversed(arch_names())}
    return list(names.values())


def modes_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The values of `rope_interpolation` that differ for this config."""
    default = config.get("rope_style", "default") == "default"
    return ("none", "pretrain") if default else ("none",)


def worst_error(
    path: Path,
    config: dict[str, Any],
    sizes: list[tuple[int, int]],
    *,
    mode: str = "none",
    name: str = "rope_vit_reg4_b14",
    arch: str | dict[str, Any] | None = None,
    pretrain: tuple[int, int],
) -> float:
    """The largest relative error, in float64, of our maps from a file against birder's.

    Maps with the final norm at all sizes, without it at the last one.

    Args:
        path: a checkpoint of a network with seeded weights, written by birder.
        config: birder's config of that network.
        sizes: pixels, (height, width).
        mode: 'none' or 'pretrain': the latter is birder's with a `pt_grid_size`.
        name: birder's name that `config` overrides.
        arch: argument of RoPEViT; default the config.
        pretrain: pixels, (height, width).
    """
    settings = dict(config)
    if mode == "pretrain" and settings.get("pt_grid_size") is None:
        patch = config["patch_size"]
        settings["pt_grid_size"] = (pretrain[0] // patch, pretrain[1] // patch)
    net = birder_net(name, settings, size=pretrain)
    model = load(path, arch or config, pretrain_img_size=pretrain, rope_interpolation=mode).double()
    error = 0.0
    for final_norm in (True, False):
        if not final_norm:
            model.norm = torch.nn.Identity()
        for size in sizes if final_norm else sizes[-1:]:
            images = seeded_images((1, 3, *size))
            with torch.no_grad():
                actual = model(images)
            expected = birder_maps(net, images, final_norm=final_norm)
            for ours, theirs in zip(actual, expected, strict=True):
                error = max(error, relative_error(ours, theirs))
    return error


def birder_maps(net: torch.nn.Module, images: Tensor, *, final_norm: bool) -> list[Tensor]:
    """birder's detection maps; the encoder's norm on the last block's if `final_norm`."""
    with torch.no_grad():
        maps = list(net.detection_features(images).values())
        if final_norm and (net.out_indices or [-1])[-1] in (-1, net.num_layers - 1):
            maps[-1] = net.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return maps


def load(path: Path, arch: Any, **arguments: Any) -> RoPEViT:
    """RoPEViT with the weights of a file, in eval mode."""
    model = RoPEViT(arch, **arguments, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    model.init_weights()
    return model.eval()


def published_networks() -> list[tuple[str, int]]:
    """(birder's name, side in pixels) of every network that has published weights."""
    return sorted({(weights.network, weights.side) for weights in WEIGHTS.values()})


def full_errors(
    name: str, side: int, directory: Path
) -> Iterator[tuple[str, tuple[int, int], float]]:
    """(rope_interpolation, pixels, relative error) of a network in full, in float64."""
    config, pretrain = birder_config(name), (side, side)
    path = write_checkpoint(birder_net(name, size=pretrain, dtype=torch.float32), directory)
    patch = config["patch_size"]
    other = (side - 3 * patch, side + 2 * patch)
    for mode in modes_of(config):
        for size in (pretrain, other) if mode == "none" else (other,):
            arguments = dict(mode=mode, name=name, arch=name, pretrain=pretrain)
            yield mode, size, worst_error(path, config, [size], **arguments)


def pixels(config: dict[str, Any], grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] * config["patch_size"], grid[1] * config["patch_size"]


def training_maps(model: torch.nn.Module, images: Tensor, seed: int = 3) -> Tensor:
    """The last map of a network in training mode, after seeding torch."""
    torch.manual_seed(seed)
    model.train()
    with torch.no_grad():
        if isinstance(model, RoPEViT):
            return model(images)[-1]
        return list(model.detection_features(images).values())[-1]
