"""adapt: any detector config of mmdet with a RoPEViT and its pyramid for backbone and neck."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ropevit_mmdet.apis.adaptation.check import check_training
from ropevit_mmdet.apis.adaptation.edits import Edits, walk
from ropevit_mmdet.apis.adaptation.edits import Path as KeyPath
from ropevit_mmdet.apis.adaptation.pyramid import Levels, pyramid_and_necks
from ropevit_mmdet.apis.adaptation.source import Source, detector_path, read_config
from ropevit_mmdet.apis.adaptation.strides import (
    StrideMap,
    default_of,
    needs_whole_strides,
    stride_edits,
)
from ropevit_mmdet.apis.adaptation.training import recipe, scale_images, set_optimizer, test_side
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import Checkpoint, read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import identify

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # without rgb_stats
_PRETRAIN_SIZE = 224  # pixels, where neither file nor position embedding show it


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
    source = read_config(config)
    checkpoint = read_checkpoint(resolve_weights(weights))
    name, resolved = identify(checkpoint, arch)
    edits = Edits(source.settings)
    path = ("model", *detector_path(edits.get("model")))
    base = _base_stride(edits.get(*path), resolved.patch_size, strides)
    _import_modules(edits)
    levels = pyramid_and_necks(edits, path, resolved, base)
    _set_heads(edits, path, levels, base)
    side = img_size or test_side(edits.config)
    if img_size:
        scale_images(edits, img_size)
    layer_decay, drop_path = recipe(resolved.hidden_dim)
    backbone = _backbone(checkpoint, name, resolved, side)
    backbone |= dict(drop_path_rate=drop_path)
    backbone |= dict(init_cfg=dict(type="Pretrained", checkpoint=str(weights)))
    edits.set((*path, "backbone"), backbone)
    _set_preprocessors(edits, checkpoint, _divisor(edits, resolved, levels, base))
    set_optimizer(edits, layer_decay)
    _set_runtime(edits)
    if out is not None:
        return _write(edits, source, Path(out))
    return _checked(Config(edits.config))


def _base_stride(detector: Mapping[str, Any], patch: int, strides: str | None) -> int:
    """The pixels that all strides are powers of 2 of: the patch size, or 16 for 'pow2'."""
    parts = {key: part for key, part in detector.items() if key not in ("backbone", "neck")}
    whole = [f"{'.'.join(map(str, path))}.{key}" for path, settings in walk(parts)
             for key in needs_whole_strides(settings)]  # fmt: skip
    reason = f"{whole[0]} must be whole pixels" if whole else ""
    if any(key.startswith("teacher") for key in detector):
        reason = "the teacher has strides of 4, 8, 16 ..."
    if patch & (patch - 1) == 0:
        reason = ""
    if strides == "native" and reason:
        raise UserError(f"native strides do not fit {type_name(detector)}: {reason}; use pow2")
    return 16 if strides == "pow2" or reason else patch


def _set_heads(edits: Edits, path: KeyPath, levels: Levels, base: int) -> None:
    """Sets what depends on strides, and input channels that are not those of before."""
    map, detector = StrideMap(levels.old, base), edits.get(*path)
    old = [level.channels for level in levels.old]
    skipped = ("backbone", "neck", "data_preprocessor", "init_cfg")
    for key in [k for k in detector if k not in skipped and not k.startswith("teacher")]:
        for part, settings in walk(detector[key], (*path, key)):
            for name, value in stride_edits(settings, map):
                before = default_of(settings, name)
                comment = "" if isinstance(before, Mapping) else f"before: {before}"
                edits.set((*part, name), value, comment)
            if _as_list(settings.get("in_channels")) == old != levels.channels:
                edits.set((*part, "in_channels"), levels.channels, f"before: {old}")


def _backbone(checkpoint: Checkpoint, name: str, arch: Arch, side: int | None) -> dict[str, Any]:
    """Settings of the RoPEViT: windows of the pretraining grid for images larger than that."""
    defaults = {field.name: field.default for field in fields(Arch)}
    explicit = {k: v for k, v in asdict(arch).items() if v != defaults[k]}
    size = checkpoint.img_size or _square_size(checkpoint, arch)
    settings: dict[str, Any] = dict(
        type="RoPEViT",
        arch=name if resolve_arch(name) == arch else explicit,  # the file may have overrides
        pretrain_img_size=size[0] if size[0] == size[1] else size,
    )
    if arch.out_indices:
        settings["out_indices"] = arch.num_layers - 1
    if side is None or side > min(size):
        settings |= dict(window_size=min(size) // arch.patch_size, pos_embed_mode="tile")
        settings |= dict(rope_interpolation=side) if side else {}
    return settings


def _square_size(checkpoint: Checkpoint, arch: Arch) -> tuple[int, int]:
    """The image size that a position embedding shows, in pixels."""
    embed, special = checkpoint.state.get("pos_embed"), arch.num_special_tokens
    if embed is None:
        return _PRETRAIN_SIZE, _PRETRAIN_SIZE
    positions = embed.shape[1] - special * arch.pos_embed_special_tokens
    return (math.isqrt(positions) * arch.patch_size,) * 2


def _divisor(edits: Edits, arch: Arch, levels: Levels, base: int) -> int:
    """Pixels to pad to, so that the levels have exactly the sizes that the heads expect."""
    old = [part.get("pad_size_divisor") or 1 for _, part in walk(edits.get("model"))]
    stride = base * 2.0 ** round(math.log2(max(*old, levels.coarsest) / base))
    return math.lcm(math.ceil(stride), arch.patch_size)


def _set_preprocessors(edits: Edits, checkpoint: Checkpoint, divisor: int) -> None:
    stats = checkpoint.rgb_stats or _IMAGENET
    values: dict[str, Any] = {k: [round(255 * v, 4) for v in stats[k]] for k in ("mean", "std")}
    values |= dict(bgr_to_rgb=True, pad_size_divisor=divisor)
    model = edits.get("model")
    model.setdefault("data_preprocessor", dict(type="DetDataPreprocessor"))
    teacher = ", for the teacher too" * any(key.startswith("teacher") for key in model)
    for path, settings in walk(model, ("model",)):
        if path[-1] != "data_preprocessor" or "data_preprocessor" in settings:
            continue
        settings.pop("rgb_to_bgr", None)
        for key, value in values.items():
            edits.set((*path, key), value, f"of the weights{teacher}" if key == "mean" else "")
        for part, augment in walk(settings.get("batch_augments"), (*path, "batch_augments")):
            for key in {"size_divisor", "pad_size_divisor"} & augment.keys():
                edits.set((*part, key), divisor)
            if type_name(augment) == "BatchFixedSizePad":
                size = [math.ceil(side / divisor) * divisor for side in augment["size"]]
                edits.set((*part, "size"), tuple(size), f"a multiple of {divisor}")


def _import_modules(edits: Edits) -> None:
    """Imports what the config imports; drops what cannot be: of the old backbone, say."""
    given, names = edits.config.get("custom_imports") or {}, []
    for name in _as_list(given.get("imports") or []):
        try:
            import_module(name)
            names.append(name)
        except ImportError:
            continue
    names = ["ropevit_mmdet", *(name for name in names if name != "ropevit_mmdet")]
    edits.set(("custom_imports",), dict(imports=names, allow_failed_imports=False))


def _set_runtime(edits: Edits) -> None:
    config = edits.config
    config["default_hooks"] = dict(config.get("default_hooks") or {})
    comment = "at the start of a run: strides, normalization, classes"
    hooks = [type_name(hook) for _, hook in walk([config[k] for k in config if "_hooks" in k])]
    if "RoPEViTChecks" not in hooks:
        edits.set(("default_hooks", "checks"), dict(type="RoPEViTChecks"), comment)
    comment = "those are weights of the detector with its old backbone"
    if config.get("load_from"):
        edits.set(("load_from",), None, comment)
    for path, settings in walk(config["model"], ("model",)):
        if "backbone" in settings and type_name(settings.get("init_cfg")) == "Pretrained":
            edits.set((*path, "init_cfg"), None, comment)
    config["default_scope"] = config.get("default_scope") or "mmdet"


def _write(edits: Edits, source: Source, out: Path) -> Config:
    """Writes the config under a hidden name, checks what was written, and renames it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix != ".py" or str(out.resolve()) == source.base:
        raise UserError(f"cannot write {out}: give a name that ends in .py, not the config's own")
    heading = source.heading(out.parent)
    edits.before = edits.before if heading else {}
    first = ("custom_imports", "model")
    edits.config = {key: edits.config[key] for key in (*first, *edits.config)}
    partial = out.with_name(f".{out.stem}.partial.py")
    try:
        text = heading + edits.text(merge=source.is_python_style and bool(heading))
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


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
