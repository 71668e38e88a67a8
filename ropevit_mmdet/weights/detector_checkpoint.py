"""Checkpoints of complete detectors, checked against the model before they are used.

mmengine loads them non-strictly: weights that do not fit stay random. Here that is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn

from ropevit_mmdet.compat.checkpoint import read_checkpoint_file
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.checkpoint import check_finite, check_fit
from ropevit_mmdet.weights.formats import find_vits, mmengine
from ropevit_mmdet.weights.hub import SCHEMES, resolve_weights
from ropevit_mmdet.weights.state_dict import (
    find_weights,
    fitting,
    number_fitting,
    renamed,
    unwrapped,
)

_mmengine_load_state_dict = mmengine_checkpoint.load_state_dict


def install() -> None:
    """Makes mmengine read files with `weights_only=True`, and refuse those that do not fit.

    Idempotent. mmengine reads URLs without `weights_only`. A checkpoint of which nothing fits a
    detector with our backbone, or weights of the backbone have other shapes, is an error, where
    mmengine only logs the names.
    """
    prefixes = ("", *(f"{scheme}://" for scheme in SCHEMES))
    CheckpointLoader.register_scheme(prefixes, _load_from_safe, force=True)
    # torchvision://, open-mmlab:// and mmcls:// look this function up in its module.
    mmengine_checkpoint.load_from_http = _load_from_safe
    mmengine_checkpoint.load_state_dict = _load_fitting


def check_start(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks `load_from`, or loads the backbone's checkpoint, before a training run starts.

    Returns:
        The checkpoint of `load_from`; empty without one.

    Raises:
        UserError: a checkpoint that cannot be used, or of which nothing fits the backbone.
    """
    start, resume = config.get("load_from"), bool(config.get("resume"))
    if start is None:
        backbone = inner_backbone(model)
        if _is_own(backbone) and backbone.init_cfg:
            backbone.init_weights()  # strict
        return {}
    checkpoint = read_detector_checkpoint(start, resume=resume)
    if resume:
        fitted(model, checkpoint["state_dict"], str(start))
    _check_backbone(model, checkpoint["state_dict"], str(start))
    return checkpoint


def inner_backbone(model: nn.Module) -> Any:
    """The backbone of a detector, inside a FrozenBackbone if there is one; else the model."""
    backbone = getattr(model, "backbone", model)
    return getattr(backbone, "backbone", backbone)


def has_backbone(model: nn.Module, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has all weights of the model's backbone: see `skip_init`."""
    targets, weights = _backbone_targets(model), checkpoint.get("state_dict", {})
    return bool(targets) and number_fitting(targets, weights) == len(targets)


def skip_init(model: Any) -> None:
    """Makes a detector, or a config of one, not read the file of its backbone's `init_cfg`."""
    if isinstance(model, dict):
        (model["backbone"].get("backbone") or model["backbone"])["init_cfg"] = None
    else:
        inner_backbone(getattr(model, "module", model)).is_init = True


def read_detector_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Reads a detector's checkpoint on the CPU; `state_dict` is without prefixes of wrappers.

    With `resume`, one that a training run cannot continue from is an error too.
    """
    content = CheckpointLoader.load_checkpoint(str(path), map_location="cpu", logger="silent")
    weights, fields = find_weights(content, path)
    content = content if isinstance(content, Mapping) else {}
    problem = _problem(weights, content, path, resume)
    if problem:
        raise UserError(f"checkpoint {path} {problem}")
    check_finite(weights, str(path))
    return {**(fields if "state_dict" in content else {}), "state_dict": weights}


def fitted(
    model: nn.Module, weights: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Weights of `read_detector_checkpoint` by the names of a model, which may share a prefix.

    Raises:
        UserError: other names or shapes than the model's.
    """
    targets = model.state_dict()
    check_fit(unwrapped(targets), weights, source)
    return renamed(weights, targets)


def saved_classes(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a checkpoint; () if it has none."""
    meta = (checkpoint.get("meta") or {}).get("dataset_meta")
    meta = meta if isinstance(meta, Mapping) else {}
    names = meta.get("classes") or meta.get("CLASSES") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def check_classes(saved: Sequence[str], configured: Sequence[str], source: str) -> str | None:
    """Compares the class names in the checkpoint `source` with as many of a config's dataset.

    Returns a warning for other names; None if they are equal, or other checks compare their number.
    Raises `UserError` for another order: every label would mean another class.
    """
    saved, configured = tuple(saved), tuple(configured)
    if saved == configured or len(saved) != len(configured):
        return None
    label = next(i for i, names in enumerate(zip(saved, configured)) if names[0] != names[1])
    first = f"label {label} is {saved[label]!r} there and {configured[label]!r} here"
    if sorted(saved) == sorted(configured):
        raise UserError(
            f"checkpoint {source} has the dataset's classes in another order ({first}): set "
            f"metainfo = dict(classes={saved}) of the datasets"
        )
    return f"checkpoint {source} was trained on other classes than the dataset's: {first}"


def _load_from_safe(filename: str, map_location: Any = None) -> Any:
    return read_checkpoint_file(resolve_weights(filename), map_location)


def _load_fitting(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
) -> None:
    """mmengine's `load_state_dict`; for our backbone without prefixes of wrappers."""
    is_wrapped = isinstance(module, BaseTTAModel) or is_model_wrapper(module)
    model: Any = module.module if is_wrapped else module
    if any(map(_is_own, model.modules())):
        if not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
            state_dict, _ = find_weights(state_dict, "that was loaded")
        state_dict = fitting(model.state_dict(), state_dict)
        _check_backbone(model, state_dict, "that was loaded")
    _mmengine_load_state_dict(module, state_dict, strict, logger)


def _check_backbone(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Checks that something fits our backbone, and nothing has another shape: it stays random."""
    targets = _backbone_targets(model)
    is_own = _is_own(model) or _is_own(getattr(model, "backbone", None))
    reshaped = any(weights[key].shape != targets[key].shape for key in targets & weights.keys())
    if is_own and (reshaped or not number_fitting(targets, weights)):
        others = model.state_dict().keys() - targets.keys()
        check_fit(targets, {k: v for k, v in weights.items() if k not in others}, source)


def _backbone_targets(model: nn.Module) -> dict[str, torch.Tensor]:
    prefix = "" if _is_own(model) else "backbone."
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}


def _is_own(module: Any) -> bool:
    return type(module).__module__.startswith("ropevit_mmdet.models.backbones.")


def _problem(weights: Mapping, content: Mapping, path: str | Path, resume: bool) -> str:
    homes = [
        reader.__name__
        for prefix, reader in find_vits(weights)
        if reader is not mmengine and "backbone." not in prefix  # a detector has it there
    ]
    if {"state", "birder_version"} & content.keys() or homes:
        home = (*homes, "birder")[0].rpartition(".")[2]
        return (
            f"is {home}'s, of a backbone only; to train a detector from it, "
            f"set model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{path}')"
        )
    if not weights:
        return "contains no weights of a detector"
    meta = content.get("meta") or {}
    missing = [f"meta.{key}" for key in ("epoch", "iter") if key not in meta]
    missing += [key for key in ("message_hub", "optimizer") if key not in content]
    if not resume or not missing:
        return ""
    return (
        f"is not of a training run that could continue: it has no {', '.join(missing)}; to start "
        "from its weights, pass it as load_from, without resume"
    )
