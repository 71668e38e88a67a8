"""The backbones of a comparison, as changes to the config of its protocol.

A candidate changes the backbone, the colors it was trained with, and what the neck is told of its
map. Data, heads, schedule and seeds stay those of the protocol.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import Checkpoint, check_arch, read_checkpoint
from ropevit_mmdet.weights.identify import identify
from ropevit_mmdet.weights.lookup import resolve_weights

SCRATCH = "scratch"
_PROBE_SIDE = 448  # pixels; a multiple of 14, 16 and 32
_MOST_DOUBLINGS = 2  # of a map's sides, that the neck has layers for


class Candidate(NamedTuple):
    """A backbone under comparison: its name, and the protocol's settings that it changes."""

    name: str
    options: dict[str, Any]


def parse_candidates(specs: Sequence[str], protocol: Config) -> list[Candidate]:
    """Candidates from the words of a command line, ``NAME=SOURCE`` each.

    Args:
        specs: SOURCE is a birder checkpoint (path, URL or birder://NAME), ``scratch`` for the
            protocol's own backbone with random weights, or a config file (.py) whose
            ``model.backbone`` takes the place of the protocol's; its ``custom_imports``,
            ``data_preprocessor`` and ``neck``, if it has them, come along.
        protocol: a detector with a RoPEViT, or a FrozenBackbone of one, and a SimpleFeaturePyramid.

    Raises:
        ValueError, FileNotFoundError: a word that is not so, a name that stands twice, a source
            that cannot be read or a backbone that does not fit the neck.
    """
    names, candidates = set(), []
    for spec in specs:
        name, _, source = spec.partition("=")
        if not name or not source:
            raise ValueError(f"{spec!r} is not NAME=CHECKPOINT, NAME={SCRATCH} or NAME=CONFIG.py")
        if not all(letter.isalnum() or letter in "-_." for letter in name):
            raise ValueError(f"name {name!r}: letters, digits, '-', '_' and '.' only")
        if not name[0].isalnum():  # legends would leave it out, or directories be hidden
            raise ValueError(f"name {name!r} must begin with a letter or a digit")
        if name in names:
            raise ValueError(f"two candidates are called {name!r}")
        names.add(name)
        try:
            candidates.append(Candidate(name, _options(source, protocol)))
        except ValueError as error:
            raise ValueError(f"candidate {name}: {error}") from error
    return candidates


def _options(source: str, protocol: Config) -> dict[str, Any]:
    if source == SCRATCH:
        return _from_scratch(protocol)
    if source.endswith(".py"):
        return _from_config(source, protocol)
    return _from_checkpoint(source, protocol)


def _from_scratch(protocol: Config) -> dict[str, Any]:
    options: dict[str, Any] = {_path_of_backbone(protocol, "init_cfg"): None}
    if _decays_layers(protocol):  # to spare what was learnt, towards the input most: here nothing
        options["optim_wrapper.paramwise_cfg.layer_decay_rate"] = 1.0
    return options


def _from_checkpoint(source: str, protocol: Config) -> dict[str, Any]:
    checkpoint = read_checkpoint(resolve_weights(source))
    if checkpoint.origin != "birder":
        raise ValueError(f"{source} is not a checkpoint of birder")
    own = _rope_vit(protocol)
    arch, argument = _architecture(checkpoint, own)
    own_patch = own.get("patch_size") or resolve_arch(own["arch"]).patch_size
    patch = own.get("patch_size") or arch.patch_size
    changes: dict[str, Any] = {
        "arch": argument,
        "init_cfg": dict(_delete_=True, type="Pretrained", checkpoint=source),
    }
    if checkpoint.img_size:
        height, width = checkpoint.img_size
        changes["pretrain_img_size"] = height if height == width else (height, width)
        grid = (height // arch.patch_size, width // arch.patch_size)
        if argument is own["arch"]:
            grid = _chosen_grid(own) or grid
        if own.get("window_size"):  # windows that the weights were trained with
            changes["window_size"] = min(grid)
        if not isinstance(own.get("rope_interpolation", "pretrain"), str):  # pixels
            period = own.rope_interpolation / own_patch  # patches
            changes["rope_interpolation"] = period * grid[0] / _rows(own) * patch
    if own.get("global_attn_indices") and arch.num_layers != resolve_arch(own.arch).num_layers:
        changes["global_attn_indices"] = None  # the last of each quarter
    if _is_frozen(own):
        changes["frozen_stages"] = arch.num_layers
    options = {_path_of_backbone(protocol, key): value for key, value in changes.items()}
    if checkpoint.rgb_stats:
        for key in ("mean", "std"):
            values = [round(255 * value, 4) for value in checkpoint.rgb_stats[key]]
            options[f"model.data_preprocessor.{key}"] = values
    return options | _neck_options(protocol, arch.hidden_dim, patch)


def _from_config(path: str, protocol: Config) -> dict[str, Any]:
    config = load_config(path)
    model = config.model
    if "backbone" not in model:
        raise ValueError(f"{path} has no model.backbone")
    backbone = {**model.backbone.to_dict(), "_delete_": True}
    options: dict[str, Any] = {"model.backbone": backbone}
    if protocol.model.backbone.type == "FrozenBackbone":
        options = {"model.backbone.backbone": backbone}
    elif _is_frozen(_rope_vit(protocol)):
        wrapper = dict(_delete_=True, type="FrozenBackbone", backbone=model.backbone.to_dict())
        options = {"model.backbone": wrapper}
    colors = model.get("data_preprocessor", {})
    for key in ("mean", "std", "bgr_to_rgb"):
        if key in colors:
            options[f"model.data_preprocessor.{key}"] = colors[key]
    if _decays_layers(protocol) and model.backbone.type != "RoPEViT":
        options["optim_wrapper.constructor"] = "DefaultOptimWrapperConstructor"
        rule = dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0)
        options["optim_wrapper.paramwise_cfg"] = rule
    if "custom_imports" in config:  # the backbone may be registered by them
        options["custom_imports"] = _both_imports(protocol, config)
    if "neck" in model:
        _check_neck(model, protocol)
        return options | {"model.neck": {**model.neck.to_dict(), "_delete_": True}}
    return options | _neck_options(protocol, *_measure(model.backbone))


def _both_imports(*configs: Config) -> dict[str, Any]:
    """The ``custom_imports`` of several configs in one."""
    given = [config.custom_imports for config in configs if "custom_imports" in config]
    names = [[one.imports] if isinstance(one.imports, str) else one.imports for one in given]
    may_fail = any(one.get("allow_failed_imports", False) for one in given)
    return dict(imports=list(dict.fromkeys(chain(*names))), allow_failed_imports=may_fail)


def _neck_options(protocol: Config, channels: int, stride: float) -> dict[str, Any]:
    """The protocol's pyramid over a map of other channels and stride: the same strides come out."""
    neck = protocol.model.neck
    if neck.type != "SimpleFeaturePyramid":
        raise ValueError(f"the protocol's neck is {neck.type}, not SimpleFeaturePyramid")
    before = MODELS.build(neck)
    count = len(before.scales)
    powers = [round(math.log2(stride / own)) for own in before.own_strides[:count]]
    scales = [2.0 ** min(power, _MOST_DOUBLINGS) for power in powers]  # the rest is resampled
    changes = {"in_channels": channels, "in_stride": stride, "scale_factors": scales}
    after = MODELS.build({**neck, **changes, "out_strides": None})
    if after.own_strides != before.strides:
        changes["out_strides"] = list(before.strides)
    return {f"model.neck.{key}": value for key, value in changes.items()}


def _check_neck(model: ConfigDict, protocol: Config) -> None:
    """Raise ValueError if a candidate's neck makes other maps than the protocol's heads take."""
    side, strides = _PROBE_SIDE, MODELS.build(protocol.model.neck).strides
    sides = [level.shape[-1] for level in _maps_of_probe(model.backbone, model.neck)]
    if sides != [math.ceil(side / stride) for stride in strides]:
        raise ValueError(
            f"{side} pixels become maps of {sides} in its neck, and the protocol's heads are for "
            f"strides {list(strides)}: without model.neck its map goes through the protocol's"
        )


def _measure(backbone: ConfigDict) -> tuple[int, float]:
    """Channels and stride, in pixels, of the one map that a backbone returns."""
    side, maps = _PROBE_SIDE, _maps_of_probe(backbone)
    if not isinstance(maps, (tuple, list)) or any(level.ndim != 4 for level in maps):
        raise ValueError("the backbone must return a tuple of maps [B, C, rows, columns]")
    if len(maps) != 1:
        raise ValueError(
            f"the backbone returns {len(maps)} maps and the protocol's neck takes one: "
            "give it one out_index, or a model.neck of its own"
        )
    _, channels, rows, columns = maps[0].shape
    if rows != columns or side % rows:
        raise ValueError(f"{side} x {side} pixels give a map of {rows} x {columns}")
    return channels, side // rows


def _maps_of_probe(*settings: ConfigDict) -> Any:
    """What parts of a detector, one behind the other, make of an empty image."""
    maps = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE)
    for one in settings:
        part = build_detector(Config({"model": one.to_dict()}))
        part.eval()  # by itself: mmdet's ResNet returns nothing from it
        with torch.no_grad():
            maps = part(maps)
    return maps


def _architecture(checkpoint: Checkpoint, own: Mapping[str, Any]) -> tuple[Arch, Any]:
    """The protocol's architecture if the weights are of it, else the one that they are of."""
    arch = resolve_arch(own["arch"])
    try:
        check_arch(checkpoint, arch)
    except ValueError:
        name, arch = identify(checkpoint)
        if resolve_arch(name) != arch:  # the file's config changes what the name stands for
            return arch, dict(_delete_=True, **dataclasses.asdict(arch))
        return arch, name
    return arch, own["arch"]


def _rows(backbone: Mapping[str, Any]) -> float:
    """Of the grid that a RoPEViT's weights are for, in patches."""
    if chosen := _chosen_grid(backbone):
        return chosen[0]
    size = backbone.get("pretrain_img_size", 224)
    height = size if isinstance(size, int) else size[0]
    return height / resolve_arch(backbone["arch"]).patch_size


def _chosen_grid(backbone: Mapping[str, Any]) -> tuple[int, int] | None:
    """The ``pt_grid_size`` of an architecture that a config spells out: the config's choice.

    That of an architecture with a name belongs to how its weights were trained, on another grid.
    """
    explicit = isinstance(backbone["arch"], Mapping)
    return resolve_arch(backbone["arch"]).pt_grid_size if explicit else None


def _rope_vit(protocol: Config) -> ConfigDict:
    """The protocol's own RoPEViT, also in a wrapper."""
    backbone = protocol.model.backbone
    backbone = backbone.get("backbone", backbone)
    if backbone.type != "RoPEViT":
        raise ValueError(f"the protocol's backbone is {backbone.type}, not RoPEViT")
    return backbone


def _path_of_backbone(protocol: Config, key: str) -> str:
    inner = ".backbone" if "backbone" in protocol.model.backbone else ""
    return f"model.backbone{inner}.{key}"


def _is_frozen(backbone: ConfigDict) -> bool:
    return backbone.get("frozen_stages", -1) >= resolve_arch(backbone.arch).num_layers


def _decays_layers(protocol: Config) -> bool:
    return protocol.optim_wrapper.get("constructor") == "RoPEViTLayerDecay"
