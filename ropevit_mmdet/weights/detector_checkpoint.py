"""Checkpoints of complete detectors, checked against the model before they are used.

mmengine loads them non-strictly: weights that do not fit stay random. Here that is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from ropevit_mmdet.compat.checkpoint import read_checkpoint_file
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.checkpoint import check_finite, check_fit
from ropevit_mmdet.weights.formats import birder
from ropevit_mmdet.weights.hub import SCHEMES, resolve_weights


def register_schemes() -> None:
    """Makes mmengine read paths and URLs with `weights_only=True`, which it does not for URLs."""
    prefixes = ("", *(f"{scheme}://" for scheme in SCHEMES))
    CheckpointLoader.register_scheme(prefixes, _load_from_safe, force=True)
    # torchvision://, open-mmlab:// and mmcls:// look this function up in its module.
    mmengine_checkpoint.load_from_http = _load_from_safe


def _load_from_safe(filename: str, map_location: Any = None) -> Any:
    return read_checkpoint_file(resolve_weights(filename), map_location)


def check_start(model: nn.Module, config: Config) -> None:
    """Checks `load_from`, or loads the backbone's checkpoint, before a training run starts."""
    backbone: Any = getattr(model, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)  # of a FrozenBackbone
    start, resume = config.get("load_from"), bool(config.get("resume"))
    if start is not None:
        checkpoint = read_detector_checkpoint(start, resume=resume)
        if resume:
            check_fit(model.state_dict(), checkpoint["state_dict"], str(start))
    elif type(backbone).__module__.startswith("ropevit_mmdet.") and backbone.init_cfg:
        backbone.init_weights()  # strict


def read_detector_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Reads a detector's checkpoint on the CPU; `state_dict` is without a wrapper's prefix.

    With `resume`, one that a training run cannot continue from is an error too.
    """
    checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu", logger="silent")
    problem = _problem(checkpoint, path, resume)
    if problem:
        raise UserError(f"checkpoint {path} {problem}")
    weights = checkpoint.get("state_dict", checkpoint)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    check_finite(weights, str(path))
    return {**(checkpoint if "state_dict" in checkpoint else {}), "state_dict": weights}


def _problem(checkpoint: Any, path: str | Path, resume: bool) -> str:
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    weights = content.get("state_dict", content)
    weights = weights if isinstance(weights, Mapping) else {}
    if "state" in content or birder.matches(weights):
        return (
            "is birder's, of a backbone only; to train a detector from it, "
            f"set model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{path}')"
        )
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
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
