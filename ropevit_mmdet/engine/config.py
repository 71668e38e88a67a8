"""Reads configs and applies the options of the command line, before a run writes anything."""

import os
from collections.abc import Sequence
from copy import deepcopy
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from ropevit_mmdet.compat.config import packaged_config
from ropevit_mmdet.datasets import innermost_datasets
from ropevit_mmdet.errors import UserError

# Top-level names that runners and commands read; all others are a config's own variables.
_READ_BY_RUNNER = {
    *signature(Runner).parameters,
    *"runner_type strategy model_wrapper_cfg find_unused_parameters sync_bn compile".split(),
    *"optimizer tta_model tta_pipeline custom_imports".split(),
}


def load_config(
    path: str | os.PathLike[str],
    options: dict[str, Any] | Sequence[str] | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Reads a config file or a packaged config, and applies the options of a command to it.

    `options` are values by dotted key, or `KEY=VALUE` strings in the syntax of `DictAction`.
    """
    file: Any = Path(path) if Path(path).is_file() else packaged_config(str(path))
    _require(file, f"config {path} is neither a file nor the name of a packaged config")
    try:
        config = Config.fromfile(file)
    except Exception as error:  # a Python config may raise anything
        cause = f"{type(error).__name__}: {_one_line(error.__cause__ or error)}"
        raise UserError(f"config file {file} cannot be read: {cause}") from error
    for key, value in _parsed(options or {}).items():
        _merge(config, key, value, file)
    _require("model" in config, f"config file {file} defines no model")
    config.launcher = launcher
    config.work_dir = work_dir or config.get("work_dir") or f"work_dirs/{file.stem}"
    return config


def build_detector(config: Config) -> nn.Module:
    """Builds the config's model on the CPU, without loading weights."""
    init_default_scope(config.get("default_scope") or "mmdet")
    try:
        return MODELS.build(deepcopy(config.model))
    except (KeyError, TypeError) as error:
        if ("registry" if isinstance(error, KeyError) else "argument") not in str(error):
            raise
        raise UserError(f"the config's model: {_one_line(error)}") from error


def use_amp(config: Config) -> None:
    """Enables mixed precision (`--amp`); keeps a `dtype` of the config."""
    wrapper = config.optim_wrapper
    _require(torch.cuda.is_available(), "--amp needs a GPU, and PyTorch finds none")
    given = wrapper.get("type", "OptimWrapper")
    _require(
        given in ("OptimWrapper", "AmpOptimWrapper"), f"--amp cannot replace optim_wrapper {given}"
    )
    wrapper.type = "AmpOptimWrapper"
    wrapper.setdefault("loss_scale", "dynamic")
    if "FSDP" in config.get("strategy", {}).get("type", ""):
        wrapper.setdefault("use_fsdp", True)  # a gradient scaler for shards


def check_full_precision(config: Config) -> None:
    """Refuses settings of mixed precision in a config that does not enable it."""
    wrapper = config.get("optim_wrapper") or {}
    settings = {"dtype", "loss_scale"} & wrapper.keys()
    _require(
        not settings or wrapper.get("type", "OptimWrapper") != "OptimWrapper",
        f"optim_wrapper.{min(settings, default='')} needs mixed precision: add --amp or remove it",
    )


def use_auto_scale_lr(config: Config) -> None:
    """Enables scaling of the learning rate by the batch size (`--auto-scale-lr`)."""
    scaling = config.get("auto_scale_lr", {})
    needed = "auto_scale_lr = dict(base_batch_size=...)"
    _require("base_batch_size" in scaling, f"--auto-scale-lr needs {needed} in the config")
    passes = config.get("optim_wrapper", {}).get("accumulative_counts", 1)
    expected = scaling.get("passes", passes)
    _require(
        passes == expected,
        f"accumulative_counts={passes} is not the {expected} of auto_scale_lr.passes, which "
        "--auto-scale-lr ignores: scale optim_wrapper.optimizer.lr yourself",
    )
    scaling.enable = True


def use_tensorboard(config: Config) -> None:
    """Also writes losses, learning rates and metrics for TensorBoard (`--tensorboard`)."""
    _require(find_spec("tensorboard"), "--tensorboard needs a package: pip install tensorboard")
    visualizer = config.setdefault("visualizer", ConfigDict(type="DetLocalVisualizer"))
    backends = visualizer.setdefault("vis_backends", [ConfigDict(type="LocalVisBackend")])
    if all("TensorboardVisBackend" not in backend["type"] for backend in backends):
        backends.append(ConfigDict(type="TensorboardVisBackend"))


def use_show(config: Config, *, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draws predictions during a test, on the screen (`--show`) or into files (`--show-dir`)."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    _require(not show or screen, "--show needs a screen (DISPLAY): use --show-dir DIRECTORY")
    hook = config.get("default_hooks", {}).get("visualization")
    _require(hook, "--show and --show-dir need a hook in the config: DetVisualizationHook")
    hook.update(draw=True, show=show, wait_time=wait_time)
    if show_dir:
        hook.test_out_dir = show_dir


def use_tta(config: Config) -> bool:
    """Tests on mirror images too, or by the config's TTA; returns whether masks were removed."""
    boxes_only = bool(config.model.get("roi_head", {}).get("mask_head"))
    if boxes_only:  # mmdet merges only boxes
        config.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        evaluators = config.test_evaluator
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if "segm" in evaluator.get("metric", ()):
                evaluator.metric = "bbox"
    for dataset in innermost_datasets(config.test_dataloader.dataset):
        dataset.pipeline = config.get("tta_pipeline") or _mirror_pipeline(dataset.pipeline)
    merging = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
    wrapper = config.get("tta_model", {"type": "DetTTAModel", "tta_cfg": merging})
    config.model = ConfigDict(**wrapper, module=config.model)
    return boxes_only


def _mirror_pipeline(pipeline: list[ConfigDict]) -> list[ConfigDict]:
    pack = deepcopy(pipeline[-1])
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pack.meta_keys = (*pack.get("meta_keys", keys), "flip", "flip_direction")
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return [*deepcopy(pipeline[:-1]), ConfigDict(type="TestTimeAug", transforms=[flips, [pack]])]


def _parsed(options: dict[str, Any] | Sequence[str]) -> dict[str, Any]:
    if isinstance(options, dict):
        return options
    for option in options:
        balanced = all(option.count(a) == option.count(b) for a, b in ("()", "[]"))
        _require("=" in option and balanced, f"--cfg-options {option}: expected KEY=VALUE")
    pairs = [option.split("=", maxsplit=1) for option in options]
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


def _merge(config: Config, key: str, value: Any, file: Path) -> None:
    option = f"--cfg-options {key}={value!r}"
    _require(
        "." in key or key not in config or key in _READ_BY_RUNNER,
        f"{option} has no effect: {file} has already used this variable in other settings",
    )
    try:
        config.merge_from_dict({key: value})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{option} does not fit {file}: {_one_line(error)}") from error


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise UserError(message)


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) else error  # without KeyError's quotes
    return " ".join(str(text).split())
