"""Reads configs and applies the options of the command line, before a run writes anything."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ropevit_mmdet.compat.config import base_path, metric_settings, packaged_config, type_name
from ropevit_mmdet.datasets import innermost_datasets
from ropevit_mmdet.engine.base_variables import ineffective_variables
from ropevit_mmdet.errors import UserError

# Top-level names that runners and commands read; all others are a config's own variables.
_READ_BY_RUNNER = {
    *signature(Runner).parameters,
    *"runner_type strategy model_wrapper_cfg find_unused_parameters sync_bn compile".split(),
    *"optimizer tta_model tta_pipeline custom_imports activation_checkpointing".split(),
    *"efficient_conv_bn_eval init_weights_for_test_or_val".split(),
}
_SAMPLING = (
    *(Tensor.uniform_, Tensor.normal_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
)
_INNER_SPACES = re.compile(r"(?<=[^\s,(\[]) +(?=[^\s,)\]])")  # of an option's value
# Of mmengine: a config removes them by `default_hooks = dict(NAME=None)`.
_HOOKS = "runtime_info timer sampler_seed logger param_scheduler checkpoint".split()
LOG_BACKENDS = {
    "tensorboard": "TensorboardVisBackend",
    "wandb": "WandbVisBackend",
    "mlflow": "MLflowVisBackend",
}


def load_config(
    path: str | os.PathLike[str] | Config,
    options: dict[str, Any] | Sequence[str] | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
    imports: bool = True,
) -> Config:
    """Loads a config file or a packaged config, and applies the options of a command to it.

    `path` may be `PACKAGE::NAME`, or a loaded config with a file name. `options` are values by
    dotted key, or `KEY=VALUE` strings in the syntax of `DictAction`. Without `imports`, the modules
    of its `custom_imports` are not imported.
    """
    if isinstance(path, Config):
        config, file = deepcopy(path), Path(path.filename)
    else:
        config, file = _read_file(path, imports)
    for key, value in _parsed(options or {}).items():
        _merge(config, key, value, file)
    old = _settings_of_mmdet_2(config)
    _require(
        not old,
        f"config file {file} is for MMDetection 2, by its {old}: see 'Migrating from MMDetection "
        "2.x' in MMDetection's documentation, or start from a packaged config",
    )
    _require("model" in config, f"config file {file} defines no model")
    hooks = config.get("default_hooks") or {}
    for name in [name for name, hook in hooks.items() if hook is None and name not in _HOOKS]:
        del hooks[name]  # mmengine only knows how to remove its own
    config.launcher = launcher
    config.work_dir = work_dir or config.get("work_dir") or f"work_dirs/{file.stem}"
    return config


def is_config(name: str) -> bool:
    """Whether an argument is a config, and no checkpoint: by its suffix, or as a packaged one."""
    packaged = not Path(name).is_file() and packaged_config(name)
    return name.endswith((".py", ".json", ".yaml", ".yml")) or "::" in name or bool(packaged)


def _read_file(path: str | os.PathLike[str], imports: bool) -> tuple[Config, Path]:
    file: Any = Path(path) if Path(path).is_file() else packaged_config(str(path))
    if "::" in str(path):
        try:
            file = Path(base_path(f"{str(path).removesuffix('.py')}.py", "")[0])
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise UserError(f"config {path}: {error}") from error
    _require(file, f"config {path} is neither a file nor the name of a packaged config")
    try:
        config = Config.fromfile(file, import_custom_modules=imports)
    except Exception as error:  # a Python config may raise anything
        raise UserError(f"config file {file} {_why_unreadable(error)}") from error
    ineffective = next(ineffective_variables(Path(file), _READ_BY_RUNNER), "")
    _require(not ineffective, ineffective)
    return config, file


def build_detector(config: Config, *, random: bool = True) -> nn.Module:
    """Builds the config's model on the CPU, without loading weights.

    Random weights, which take most of the time, are zeros without `random`: for a model whose
    weights are all loaded, or only compared.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    with nullcontext() if random else _ZerosForRandom():
        return MODELS.build(deepcopy(config.model))


def use_amp(config: Config) -> None:
    """Enables mixed precision (`--amp`); keeps a `dtype` of the config."""
    wrapper = config.optim_wrapper
    _require(torch.cuda.is_available(), "--amp needs a GPU, and PyTorch finds none")
    given = type_name(wrapper) or "OptimWrapper"
    _require(
        given in ("OptimWrapper", "AmpOptimWrapper"), f"--amp cannot replace optim_wrapper {given}"
    )
    wrapper.type = "AmpOptimWrapper"
    wrapper.setdefault("loss_scale", "dynamic")
    if "FSDP" in type_name(config.get("strategy")):
        wrapper.setdefault("use_fsdp", True)  # a gradient scaler for shards


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


def use_log(config: Config, names: Sequence[str]) -> None:
    """Also writes losses, learning rates and metrics for these trackers (`--log`)."""
    visualizer = config.get("visualizer") or dict(type="DetLocalVisualizer")
    backends = list(visualizer.get("vis_backends") or [dict(type="LocalVisBackend")])
    for name in names:
        _require(find_spec(name), f"--log {name} needs a package: pip install {name}")
        settings = ConfigDict(type=LOG_BACKENDS[name])
        if name == "mlflow":  # refuses mmengine's default, a directory of files, since 3.7
            settings.tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        if settings.type not in map(type_name, backends):
            backends.append(settings)
    if names:
        config.visualizer = dict(visualizer, vis_backends=backends)


def use_early_stop(config: Config, patience: int) -> None:
    """Ends a run after `patience` validations without a better box AP, and keeps the best weights.

    Better is by 0.001, a tenth of a point. Replaces an EarlyStoppingHook of the config.
    """
    metrics = (
        (METRICS.get(type_name(one)), one)
        for one in metric_settings(config.get("val_evaluator") or ())
    )
    prefixes = (
        one.get("prefix") or cls.default_prefix
        for cls, one in metrics
        if cls and issubclass(cls, CocoMetric) and "bbox" in (one.get("metric") or "bbox")
    )
    prefix = next(prefixes, None)
    # These put names before those of figures.
    several = {type_name(config.get(key)) for key in ("val_evaluator", "val_cfg")}
    several &= {"MultiDatasetsEvaluator", "TeacherStudentValLoop"}
    needed = "a val_evaluator of boxes, CocoMetric or FastCocoMetric, of one dataset and model"
    _require(prefix and not several, f"--early-stop needs {needed}")
    stop = ConfigDict(type="EarlyStoppingHook", monitor=f"{prefix}/bbox_mAP", min_delta=0.001)
    stop.patience = patience
    custom = [hook for hook in config.get("custom_hooks") or () if type_name(hook) != stop.type]
    config.custom_hooks = [*custom, stop]
    default = (config.get("default_hooks") or {}).items()
    hooks = {name: hook for name, hook in default if type_name(hook) != stop.type}
    saving = hooks.get("checkpoint") or dict(type="CheckpointHook")
    config.default_hooks = {**hooks, "checkpoint": {"save_best": stop.monitor, **saving}}


def use_show(config: Config, *, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draws predictions during a test, on the screen (`--show`) or into files (`--show-dir`)."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    _require(not show or screen, "--show needs a screen (DISPLAY): use --show-dir DIRECTORY")
    hook: Any = (config.get("default_hooks") or {}).get("visualization")
    _require(hook, "--show and --show-dir need a hook in the config: DetVisualizationHook")
    hook.update(draw=True, show=show, wait_time=wait_time)
    if show_dir:
        hook.test_out_dir = show_dir


def use_tta(config: Config) -> bool:
    """Tests on mirror images too, or by the config's TTA; returns whether masks were removed."""
    heads = {"panoptic_head", "panoptic_fusion_head", "mask_head"} & config.model.keys()
    has_masks = heads or "RTMDetIns" in type_name(config.model.get("bbox_head"))
    _require(not has_masks, "--tta: mmdet merges boxes, not masks")
    boxes_only = bool(config.model.get("roi_head", {}).get("mask_head"))
    if boxes_only:  # mmdet merges only boxes
        config.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for metric in metric_settings(config.test_evaluator):
            if "segm" in metric.get("metric", ()):
                metric["metric"] = "bbox"
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


class _ZerosForRandom(TorchFunctionMode):
    """Fills tensors with zeros where PyTorch's layers would sample."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SAMPLING:
            return (args[0] if args else kwargs["tensor"]).detach().zero_()
        return func(*args, **(kwargs or {}))


def _parsed(options: dict[str, Any] | Sequence[str]) -> dict[str, Any]:
    if isinstance(options, dict):
        return options
    for option in options:
        balanced = all(option.count(a) == option.count(b) for a, b in ("()", "[]"))
        _require("=" in option and balanced, f"--cfg-options {option}: expected KEY=VALUE")
    pairs = [option.split("=", maxsplit=1) for option in options]
    # mmengine removes spaces, in the names of files and classes too.
    kept = {key: _INNER_SPACES.sub(lambda m: "\0" * len(m[0]), value) for key, value in pairs}
    return {key: _spaced(DictAction._parse_iterable(value)) for key, value in kept.items()}


def _spaced(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_spaced, value))
    return value.replace("\0", " ") if isinstance(value, str) else value


def _merge(config: Config, key: str, value: Any, file: Path) -> None:
    option, name = f"--cfg-options {key}={value!r}", key.partition(".")[0]
    reason = f"{file} has already used this variable in other settings"
    if name not in config:
        close = difflib.get_close_matches(name, {*config.keys(), *_READ_BY_RUNNER}, n=1)
        reason = f"nothing reads {name!r}" + "".join(f"; did you mean {one!r}?" for one in close)
    _require(name in _READ_BY_RUNNER, f"{option} has no effect: {reason}")
    try:
        config.merge_from_dict({key: value})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{option} does not fit {file}: {_one_line(error)}") from error


def _why_unreadable(error: BaseException) -> str:
    """The reason in one line; of custom imports, what Python did not find."""
    cause = error.__cause__ or error
    if not str(cause).startswith("Failed to import "):
        return f"cannot be read: {type(error).__name__}: {_one_line(cause)}"
    reason = cause.__context__ or cause
    missing = isinstance(reason, ModuleNotFoundError)
    hint = ": add its directory to PYTHONPATH, or install it" if missing else ""
    return f"has custom_imports: {cause}: {_one_line(reason)}{hint}"


def _settings_of_mmdet_2(config: Config) -> str:
    keys = "lr_config optimizer_config checkpoint_config log_config evaluation runner".split()
    if not any(f"{split}_dataloader" in config for split in ("train", "val", "test")):
        keys.insert(0, "data")
    return ", ".join(key for key in keys if isinstance(config.get(key), Mapping))


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise UserError(message)


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) else error  # without KeyError's quotes
    return " ".join(str(text).split())
