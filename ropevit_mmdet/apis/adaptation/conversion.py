"""adapt: any detector config of mmdet with a RoPEViT and its pyramid for backbone and neck."""

import math
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from logging import WARNING
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from ropevit_mmdet.apis.adaptation.check import check_training
from ropevit_mmdet.apis.adaptation.config_file import config_text, detector_path, read_config
from ropevit_mmdet.apis.adaptation.pyramid import Levels, replace_neck
from ropevit_mmdet.apis.adaptation.rules import (
    StrideMap,
    needs_whole_strides,
    scale_images,
    stride_edits,
    test_side,
)
from ropevit_mmdet.compat.config import as_list, type_name, walk
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch, names_of
from ropevit_mmdet.weights.checkpoint import Checkpoint, pretrained_entries, read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import identify, pixel_stats, pretrain_size

_IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
_PRETRAIN_SIZE = (224, 224)  # pixels, where neither file nor position embedding show it
# Up to a width of channels: layer decay and drop path of ViTDet (arXiv 2203.16527) for B, L and H.
_RECIPES = ((1023, 0.7, 0.1), (1279, 0.8, 0.4), (math.inf, 0.9, 0.5))
_WARMUP = 250  # iterations
_MAX_OWN_LR = 2e-4  # of an Adam: what DETR-type detectors have


def adapt(
    config: str | os.PathLike[str] | Config,
    weights: str,
    *,
    strides: str | None = None,
    img_size: int | None = None,
    arch: str | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Config:
    """Puts a RoPEViT and its pyramid into a detector config, and checks a training step.

    The pyramid has the levels and channels of the config's backbone and neck; a neck that does more
    than an FPN stays, after it. Everything that depends on strides, channels, normalization and
    image size is set; the optimizer becomes AdamW with layer decay.

    Args:
        config: a file, `mmdet::NAME`, the name of a packaged config, or a `Config`.
        weights: a checkpoint of a RoPE ViT, as for `resolve_weights`.
        strides: 'native' (3.5, 7, 14 ... pixels for patches of 14), or 'pow2' to resample the
            levels to 4, 8, 16 ...; default: native where the heads allow it.
        img_size: pixels of the longer side of a test image; default: as in the config.
        arch: the architecture of the weights, where they fit several.
        out: the file to write: the config as base and the differences, with comments.

    Returns:
        The adapted config, complete.

    Raises:
        UserError: a config that cannot be adapted, weights that are none, with the reason.
    """
    init_default_scope("mmdet")
    before, inherited = read_config(config)
    checkpoint = read_checkpoint(resolve_weights(weights))
    _, resolved = identify(checkpoint, arch)
    settings = deepcopy(before)
    detector = model = settings["model"]
    for key in detector_path(model):
        detector = detector[key]
    base = _base_stride(detector, resolved.patch_size, strides)
    _import_modules(settings)
    levels = replace_neck(detector, resolved, base)
    if levels.is_partial:
        settings["find_unused_parameters"] = True
    _set_heads(detector, levels, base)
    side = img_size or test_side(settings)
    if img_size:
        scale_images(settings, img_size)
    layer_decay, drop_path = next(rest for width, *rest in _RECIPES if resolved.hidden_dim <= width)
    detector["backbone"] = _backbone(checkpoint, resolved, side) | dict(
        drop_path_rate=drop_path, init_cfg=dict(type="Pretrained", checkpoint=str(weights))
    )
    _set_preprocessors(model, checkpoint, _divisor(model, resolved, levels, base))
    _set_optimizer(settings, layer_decay)
    _set_runtime(settings)
    if out is None:
        return _checked(Config(settings))
    file = Path(out)
    if file.suffix != ".py" or str(file.resolve()) == inherited:
        raise UserError(f"cannot write {out}: give a name that ends in .py, not the config's own")
    return _write(config_text(settings, before, inherited, file.parent), file)


def _base_stride(detector: Mapping[str, Any], patch: int, strides: str | None) -> int:
    """The pixels that all strides are powers of 2 of: the patch size, or 16 for 'pow2'."""
    parts = {key: part for key, part in detector.items() if key not in ("backbone", "neck")}
    whole = needs_whole_strides(parts)
    reason = f"{whole} must be whole pixels" if whole else ""
    if any(key.startswith("teacher") for key in detector):
        reason = "the teacher has strides of 4, 8, 16 ..."
    if patch & (patch - 1) == 0:
        reason = ""
    if strides == "native" and reason:
        raise UserError(f"native strides do not fit {type_name(detector)}: {reason}; use pow2")
    return 16 if strides == "pow2" or reason else patch


def _set_heads(detector: dict[str, Any], levels: Levels, base: int) -> None:
    """Sets what depends on strides, and input channels that are not those of before."""
    map = StrideMap([level.stride for level in levels.old], base)
    channels = [level.channels for level in levels.old]
    skipped = ("backbone", "neck", "data_preprocessor", "init_cfg")
    for key in [k for k in detector if k not in skipped and not k.startswith("teacher")]:
        for _, settings in walk(detector[key]):
            settings.update(stride_edits(settings, map))
            if as_list(settings.get("in_channels")) == channels != levels.channels:
                settings["in_channels"] = levels.channels


def _backbone(checkpoint: Checkpoint, arch: Arch, side: int | None) -> dict[str, Any]:
    """Settings of the RoPEViT: windows of the pretraining grid for images larger than that."""
    defaults = {field.name: field.default for field in fields(Arch)}
    explicit = {k: v for k, v in asdict(arch).items() if v != defaults[k]}
    size = pretrain_size(checkpoint, arch) or _PRETRAIN_SIZE
    settings: dict[str, Any] = dict(
        type="RoPEViT",
        arch=next(iter(names_of(arch)), explicit),  # the file may have overrides
        pretrain_img_size=size[0] if size[0] == size[1] else size,
    )
    blocks = checkpoint.settings()["num_layers"]  # fewer, and no norm, in a detector's file
    if arch.out_indices or blocks < arch.num_layers:
        settings["out_indices"] = blocks - 1
    if arch.has_final_norm and "norm.weight" not in checkpoint.state:
        settings["final_norm"] = False
    if side is None or side > min(size):
        settings |= dict(window_size=min(size) // arch.patch_size, pos_embed_mode="tile")
        settings |= dict(rope_interpolation=side) if side else {}
    return settings


def _divisor(model: dict[str, Any], arch: Arch, levels: Levels, base: int) -> int:
    """Pixels to pad to, so that the levels have exactly the sizes that the heads expect."""
    old = [part.get("pad_size_divisor") or 1 for _, part in walk(model)]
    stride = base * 2.0 ** round(math.log2(max(*old, levels.coarsest) / base))
    return math.lcm(math.ceil(stride), arch.patch_size)


def _set_preprocessors(model: dict[str, Any], checkpoint: Checkpoint, divisor: int) -> None:
    """Sets statistics and padding, also of a teacher, which gets the same images."""
    if not (statistics := pixel_stats(checkpoint)):
        print_log(f"{checkpoint.path} has no mean and std: ImageNet's are set", "current", WARNING)
        statistics = _IMAGENET
    model.setdefault("data_preprocessor", dict(type="DetDataPreprocessor"))
    for path, settings in walk(model):
        if path[-1:] != ("data_preprocessor",) or "data_preprocessor" in settings:
            continue
        settings.pop("rgb_to_bgr", None)
        settings.update(statistics)
        settings.update(bgr_to_rgb=True, pad_size_divisor=divisor)
        for _, augment in walk(settings.get("batch_augments")):
            divisors = {"size_divisor", "pad_size_divisor"} & augment.keys()
            augment.update(dict.fromkeys(divisors, divisor))
            if type_name(augment) == "BatchFixedSizePad":
                size = [math.ceil(side / divisor) * divisor for side in augment["size"]]
                augment["size"] = tuple(size)


def _set_optimizer(config: dict[str, Any], layer_decay: float) -> None:
    """AdamW with layer decay; the config's wrapper, gradient clipping and schedule stay."""
    wrapper = config["optim_wrapper"] = config.get("optim_wrapper") or {"type": "OptimWrapper"}
    own = wrapper.get("optimizer") or {}
    batch = (config.get("auto_scale_lr") or {}).get("base_batch_size", 16)
    batch *= wrapper.get("accumulative_counts", 1)
    lr, decay = float(f"{1e-4 * math.sqrt(batch / 64):.2g}"), 0.1
    if "Adam" in type_name(own):
        lr = own["lr"] if own.get("lr", 1) <= _MAX_OWN_LR else lr
        decay = own.get("weight_decay", decay)
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {})
    keys = {key: value for key, value in keys.items() if not key.startswith("backbone")}
    wrapper.update(
        optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=decay),
        constructor="RoPEViTLayerDecay",
        paramwise_cfg=dict(
            layer_decay_rate=layer_decay, **(dict(custom_keys=keys) if keys else {})
        ),
    )
    schedulers = config["param_scheduler"] = as_list(config.get("param_scheduler"))
    ratio = lr / own.get("lr", lr)
    for one in schedulers:  # learning rates become fractions of the base rate
        if type_name(one) in ("CosineAnnealingLR", "CosineRestartLR") and one.get("eta_min"):
            one["eta_min_ratio"] = round(one.pop("eta_min") / lr * ratio, 6)
        elif one.get("eta_min") or one.get("eta_max"):
            one.update({key: one[key] * ratio for key in {"eta_min", "eta_max"} & one.keys()})
    starts = [type_name(one) for one in schedulers if not one.get("begin")]
    if not any("Warmup" in name or name == "LinearLR" for name in starts):
        warmup = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=_WARMUP)
        schedulers.insert(0, warmup)


def _import_modules(config: dict[str, Any]) -> None:
    """Imports what the config imports; drops what cannot be: of the old backbone, say."""
    names = as_list((config.get("custom_imports") or {}).get("imports"))
    modules = import_modules_from_strings(names, allow_failed_imports=True) or []
    found = ["ropevit_mmdet", *(module.__name__ for module in modules if module)]
    config["custom_imports"] = dict(imports=[*dict.fromkeys(found)], allow_failed_imports=False)


def _set_runtime(config: dict[str, Any]) -> None:
    """Checks at the start of a run, and no weights of the detector with its old backbone."""
    hooks = config["default_hooks"] = config.get("default_hooks") or {}
    if not any(
        type_name(hook) == "RoPEViTChecks" for _, hook in walk([hooks, config.get("custom_hooks")])
    ):
        hooks["checks"] = dict(type="RoPEViTChecks")
    if config.get("load_from"):
        config["load_from"] = None
    for _, settings in walk(config["model"]):
        if "backbone" in settings and pretrained_entries(settings.get("init_cfg")):
            settings["init_cfg"] = None
    config["default_scope"] = config.get("default_scope") or "mmdet"


def _write(text: str, out: Path) -> Config:
    """Writes a config under a hidden name, checks what was written, and renames it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial.py")
    try:
        partial.write_text(text, encoding="utf-8")
        adapted = _checked(Config.fromfile(partial))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return adapted


def _checked(config: Config) -> Config:
    try:
        check_training(config)
    except Exception as error:  # of the detector's code, which may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        name = type_name(config.model)
        raise UserError(f"the adapted {name} fails on synthetic data: {text}") from error
    return config
