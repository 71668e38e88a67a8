"""Warns of the settings with which a RoPE ViT is known to train badly, before a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ropevit_mmdet.compat.config import as_list, innermost_datasets, type_name
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.checkpoint import pretrained_entries

MAX_LR, MAX_NORM = 1e-3, 0.1
# Schedulers that begin with a low learning rate: the argument that says how low, and its default.
_WARMUPS = {"LinearLR": ("start_factor", 1 / 3), "ConstantLR": ("factor", 1 / 3)}
_OWN_WARMUP = ("QuadraticWarmupLR", "OneCycleLR", "TwoStageWarmupPolyLR")


def recipe_warnings(config: Config) -> list[str]:
    """Compares the recipe of a run with what a RoPE ViT needs: a line for each finding.

    Settings of a detector without a RoPE ViT, or whose RoPE ViT is completely frozen, are free.
    """
    found = list(_rope_vits(config.model, "model"))
    warnings = [line for path, settings, frozen in found for line in _weights(config, path, frozen)]
    if not all(frozen for _, _, frozen in found):
        warnings += [*_optimizer(config), *_warm_up(config)]
    return [*warnings, *_length(config), *(_normalization(config) if found else ())]


def _rope_vits(settings: Any, path: str, frozen: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """The RoPE ViTs in a model's settings: dotted key, settings, whether nothing of them trains."""
    if type_name(settings) == "RoPEViT":
        depth = resolve_arch(settings["arch"]).num_layers
        yield path, settings, frozen or settings.get("frozen_stages", -1) >= depth
    elif isinstance(settings, Mapping):
        frozen |= type_name(settings) == "FrozenBackbone"
        for key, one in settings.items():
            yield from _rope_vits(one, f"{path}.{key}", frozen)


def _weights(config: Config, path: str, frozen: bool) -> Iterator[str]:
    """Random weights that stay as they are; pretrained ones that all layers change alike."""
    settings: Any = {"model": config.model}
    weights = bool(config.get("load_from") or config.get("resume"))
    for key in path.split("."):  # a whole detector may be pretrained, too
        settings = settings[key]
        pretrained = pretrained_entries(settings.get("init_cfg"))
        weights |= bool(pretrained)
    if (frozen or settings.get("frozen_stages", -1) >= 0) and not weights:
        yield (
            f"{path}.init_cfg names no weights, and what is frozen stays random: set init_cfg="
            "dict(type='Pretrained', checkpoint=...), or train it by frozen_stages=-1"
        )
    wrapper = config.get("optim_wrapper") or {}
    if not frozen and pretrained and not _decays(wrapper):
        yield (
            f"optim_wrapper has no layer decay for the pretrained {path}: set constructor="
            "'RoPEViTLayerDecay' and paramwise_cfg=dict(layer_decay_rate=0.7)"
        )


def _decays(wrapper: Mapping) -> bool:
    """Whether the backbone, or parts of it, learn slower than the heads."""
    paramwise = wrapper.get("paramwise_cfg") or {}
    constructor = type_name({"type": wrapper.get("constructor")})
    if constructor == "RoPEViTLayerDecay":
        return paramwise.get("layer_decay_rate", 1) < 1
    own = constructor not in ("", "DefaultOptimWrapperConstructor")  # such as mmpretrain's
    return own or any(rate < 1 for rate in _rates(wrapper))


def _rates(wrapper: Mapping) -> list[float]:
    """Factors of the learning rate for parameters of the backbone."""
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    return [one["lr_mult"] for key, one in keys.items() if "backbone" in key and "lr_mult" in one]


def _optimizer(config: Config) -> Iterator[str]:
    wrapper = config.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer") or {}
    name, lr = type_name(optimizer), optimizer.get("lr") or 0
    advice = "AdamW, with lr=1e-4 or up to 1e-3 from scratch"
    if name == "SGD":
        yield f"optim_wrapper.optimizer is SGD, with which a ViT hardly learns: use {advice}"
    elif lr * max(_rates(wrapper), default=1) > MAX_LR:
        yield f"optim_wrapper.optimizer.lr={lr:g} is too high for a ViT: use {advice}"


def _warm_up(config: Config) -> Iterator[str]:
    """DINO's recipe has none: it clips the norm of the gradients at 0.1 instead."""
    clipping = (config.get("optim_wrapper") or {}).get("clip_grad") or {}
    if (clipping.get("max_norm") or 1) <= MAX_NORM:
        return
    for one in as_list(config.get("param_scheduler") or ()):
        key, default = _WARMUPS.get(type_name(one), ("", 1))
        if type_name(one) in _OWN_WARMUP or (not one.get("begin") and one.get(key, default) < 1):
            return
    yield (
        "param_scheduler has no warm-up, and the first steps of a ViT diverge: begin it with "
        "dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250)"
    )


def _length(config: Config) -> Iterator[str]:
    """A schedule of another length than the run, as after `--cfg-options train_cfg.max_iters=N`."""
    for by_epoch, key in ((False, "max_iters"), (True, "max_epochs")):
        length = (config.get("train_cfg") or {}).get(key)
        ends = [
            one["end"]
            for one in as_list(config.get("param_scheduler") or ())
            if isinstance(one.get("end"), int) and one.get("by_epoch", True) == by_epoch
            if type_name(one) not in _WARMUPS or one.get("begin")
        ]
        if length and ends and max(ends) != length:
            yield (
                f"param_scheduler ends at {max(ends)}, the run at train_cfg.{key}={length}: set "
                f"end, and milestones, to fit {length}"
            )


def _normalization(config: Config) -> Iterator[str]:
    """Images that reach the backbone as 0..255; a checkpoint's statistics are checked elsewhere."""
    settings = config.model.get("data_preprocessor") or {}
    settings = settings.get("data_preprocessor", settings)  # of several branches
    mean, std = settings.get("mean"), settings.get("std")
    loader = config.get("train_dataloader") or {}
    steps = [
        type_name(step)
        for dataset in innermost_datasets(loader.get("dataset") or {})
        for step in dataset.get("pipeline") or ()
    ]
    given = mean is not None and std is not None and max(*mean, *std) > 1
    if type_name(settings) == "DetDataPreprocessor" and not given and "Normalize" not in steps:
        yield (
            f"model.data_preprocessor has mean={mean}, std={std}, for images of 0..255: set them "
            "in that range, such as mean=[127.5] * 3, std=[64.0] * 3"
        )
