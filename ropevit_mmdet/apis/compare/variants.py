"""Variants of a comparison: a backbone, its image statistics and its neck in the base config."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from ropevit_mmdet.compat.config import as_list, type_name
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch, names_of, resolve_arch
from ropevit_mmdet.weights.checkpoint import Checkpoint, check_arch, read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import identify, pixel_stats, pretrain_size

_PROBE_SIDE = 448  # pixels; a multiple of 14, 16 and 32
_MAX_SCALE = 4.0  # of a feature map's sides, that the neck has layers for


def check_base(base: Config) -> None:
    """Checks that variants can be derived from a config and evaluated."""
    evaluator, issue = base.get("test_evaluator"), ""
    if not (
        type_name(_rope_vit(base)) == "RoPEViT"
        and type_name(base.model.get("neck")) == "SimpleFeaturePyramid"
        and type_name(evaluator).endswith("CocoMetric")
        and {"bbox", "segm"} & set(as_list(evaluator.get("metric", "bbox")))
    ):
        issue = (
            "needs a RoPEViT, a SimpleFeaturePyramid and one CocoMetric of bbox or segm as "
            "test_evaluator"
        )
    elif base.get("load_from"):
        issue = (
            f"has load_from={base.load_from!r}, which would replace the weights of every backbone: "
            "add --cfg-options load_from=None"
        )
    if issue:
        raise UserError(f"the base config {issue}")


def parse_variants(specs: Sequence[str], base: Config) -> dict[str, Config]:
    """Parses variants, `NAME=SOURCE` each: name -> the base config with another backbone.

    SOURCE is a birder checkpoint (path, URL or `birder://NAME`), `scratch` for the base config's
    backbone with random weights, or a config file (.py) whose `model.backbone` replaces that of the
    base config, together with its `custom_imports`, `data_preprocessor` and `neck` if it has them.
    """
    pairs = [spec.partition("=")[::2] for spec in specs]
    names = [name for name, _ in pairs]
    for name, source in pairs:
        # A leading "_" would hide the name in legends, a leading "." its directory.
        if not (re.fullmatch(r"[^\W_][\w.-]*", name) and source and names.count(name) == 1):
            raise UserError(
                f"{name}={source}: give NAME=CHECKPOINT, NAME=scratch or NAME=CONFIG.py, with "
                "distinct names of letters, digits, '-', '_' and '.'"
            )
    return {name: _derived(source, base) for name, source in pairs}


def _derived(source: str, base: Config) -> Config:
    config = deepcopy(base)
    if source == "scratch":
        _rope_vit(config).init_cfg = None
        if _decays_layers(config):  # layer decay preserves pretrained weights
            config.optim_wrapper.paramwise_cfg.layer_decay_rate = 1.0
    elif source.endswith(".py"):
        _use_config(config, load_config(source))
    else:
        _use_checkpoint(config, source)
    return config


def _use_checkpoint(config: Config, source: str) -> None:
    checkpoint = read_checkpoint(resolve_weights(source))
    model, backbone = config.model, _rope_vit(config)
    own, is_frozen = resolve_arch(backbone.arch), _is_frozen(backbone)
    own_patch = backbone.get("patch_size") or own.patch_size
    own_grid = _pretrain_grid(backbone.arch, backbone.get("pretrain_img_size", 224))
    arch, argument = _architecture(checkpoint, backbone)
    patch = backbone.get("patch_size") or arch.patch_size
    if size := pretrain_size(checkpoint, arch):
        grid = _pretrain_grid(argument if argument is backbone.arch else arch, size)
        backbone.pretrain_img_size = size
        if backbone.get("window_size"):  # the window of a config is its pretraining grid
            backbone.window_size = min(grid)
        if not isinstance(backbone.get("rope_interpolation", "pretrain"), str):  # pixels
            backbone.rope_interpolation *= grid[0] / own_grid[0] * patch / own_patch
    backbone.arch = argument
    backbone.init_cfg = dict(type="Pretrained", checkpoint=source)  # update() would merge them
    if arch.num_layers != own.num_layers:
        backbone.pop("global_attn_indices", None)  # the last of each quarter
        if isinstance(indices := backbone.get("out_indices"), Sequence):  # of the same depths
            scale = arch.num_layers / own.num_layers
            backbone.out_indices = [int((i + 1) * scale) - 1 for i in indices]
    if is_frozen:
        backbone.frozen_stages = arch.num_layers
    model.data_preprocessor.update(pixel_stats(checkpoint))
    maps = model.neck.get("in_channels")
    several = isinstance(maps, Sequence)
    _fit_neck(model.neck, [arch.hidden_dim] * len(maps) if several else arch.hidden_dim, patch)


def _use_config(config: Config, other: Config) -> None:
    model, backbone = config.model, other.model.backbone
    channels, stride = _probe(other.model, MODELS.build(model.neck).strides)
    if "neck" in other.model:
        model.neck = other.model.neck
    else:
        _fit_neck(model.neck, channels, stride)
    if type_name(model.backbone) == "FrozenBackbone":
        model.backbone.backbone = backbone
    elif _is_frozen(model.backbone):
        model.backbone = dict(type="FrozenBackbone", backbone=backbone)
    else:
        model.backbone = backbone
    statistics = other.model.get("data_preprocessor", {})
    for key in {"mean", "std", "bgr_to_rgb"} & statistics.keys():
        model.data_preprocessor[key] = statistics[key]
    if _decays_layers(config) and type_name(backbone) != "RoPEViT":
        config.optim_wrapper.constructor = "DefaultOptimWrapperConstructor"
        config.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    # They may register the backbone.
    given = [as_list(one.get("custom_imports", {}).get("imports")) for one in (config, other)]
    imports = [*dict.fromkeys(sum(given, []))]
    config.custom_imports = dict(imports=imports, allow_failed_imports=False)


def _fit_neck(neck: ConfigDict, channels: int | list[int], stride: float) -> None:
    """Sets a neck up for feature maps of other channels and stride, with the same strides out."""
    before = MODELS.build(neck)
    strides = before.own_strides[: len(before.scales)]
    scales = [min(2.0 ** round(math.log2(stride / own)), _MAX_SCALE) for own in strides]
    neck.update(in_channels=channels, in_stride=stride, scale_factors=scales)
    neck.out_strides = list(before.strides)  # the neck resamples to them


def _probe(model: ConfigDict, strides: Sequence[float]) -> tuple[int, float]:
    """Runs a variant's backbone, and its neck if it has one; returns channels and stride."""
    maps: Any = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE)
    for part in filter(None, (model.backbone, model.get("neck"))):
        module = build_detector(Config({"model": part.to_dict()}))
        module.eval()  # a statement: mmdet's ResNet.train returns None
        with torch.no_grad():
            maps = module(maps)
    shapes = [tuple(one.shape) for one in maps] if isinstance(maps, (tuple, list)) else []
    sides = [shape[-1] for shape in shapes]
    if "neck" in model:
        fits = sides == [math.ceil(_PROBE_SIDE / stride) for stride in strides]
    else:
        fits = len(sides) == 1 and _PROBE_SIDE % sides[0] == 0
    if not fits:
        raise UserError(
            f"{type_name(model.backbone)} makes feature maps {shapes} of {_PROBE_SIDE} x "
            f"{_PROBE_SIDE} pixels: set one out_index, or a model.neck of strides {list(strides)}"
        )
    return shapes[0][1], _PROBE_SIDE // sides[0]


def _architecture(checkpoint: Checkpoint, backbone: ConfigDict) -> tuple[Arch, Any]:
    """The backbone's architecture if the weights have it, else their own; and its argument."""
    arch = resolve_arch(backbone.arch)
    try:
        check_arch(checkpoint, arch)
    except ValueError:
        _, arch = identify(checkpoint)  # the file's config may override the named one
        return arch, next(iter(names_of(arch)), dataclasses.asdict(arch))
    return arch, backbone.arch


def _pretrain_grid(arch: Any, img_size: int | tuple[int, int]) -> tuple[int, int]:
    """The (rows, columns) in patches that weights were trained with.

    Only `pt_grid_size` of explicit settings is such a grid; a named architecture's is another one.
    """
    resolved = resolve_arch(arch)
    if isinstance(arch, Mapping) and resolved.pt_grid_size:
        return resolved.pt_grid_size
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height // resolved.patch_size, width // resolved.patch_size


def _rope_vit(config: Config) -> ConfigDict:
    """The RoPEViT of a config, also inside a FrozenBackbone."""
    backbone = config.model.get("backbone") or ConfigDict()
    return backbone.get("backbone", backbone)


def _is_frozen(backbone: ConfigDict) -> bool:
    return backbone.get("frozen_stages", -1) >= resolve_arch(backbone.arch).num_layers


def _decays_layers(config: Config) -> bool:
    constructor = config.optim_wrapper.get("constructor")
    return type_name({"type": constructor}) == "RoPEViTLayerDecay"
