"""Turn command line arguments into a config that is known to run, before anything is written.

Each function finds its share of what a user can get wrong and raises ValueError with one line.
"""

import argparse
import ast
import os
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch import nn

# Top-level names that runners and tools take; all others are variables of a file's own.
_READ_BY_RUNNER = {
    *signature(Runner).parameters,
    *signature(FlexibleRunner).parameters,
    *"runner_type model_wrapper_cfg find_unused_parameters sync_bn compile optimizer".split(),
    *"tta_model tta_pipeline custom_imports".split(),
}


def load_config(
    path: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config file and apply `--cfg-options`, `--work-dir` and `--launcher` to it.

    The working directory is `work_dir`, else the config's own, else `work_dirs/<name of the file>`.
    Raises ValueError if the file is missing, cannot be evaluated or contradicts the options.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    if path.suffix not in (".py", ".json", ".yaml", ".yml"):
        raise ValueError(f"config file {path} is not a .py, .json or .yaml file")
    config = _evaluate(path)
    for key, value in (options or {}).items():
        if "." not in key and key in config and key not in _READ_BY_RUNNER:
            raise ValueError(
                f"--cfg-options {key}: {path} has made other settings out of it by then, so it "
                f"would change nothing; set {key} in a config of yours that has {path.name} as its "
                "_base_, with what follows from it, or in a copy of the file"
            )
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"--cfg-options {key}={value!r} does not fit {path}: {_one_line(error)}"
            ) from error
    if "model" not in config:
        raise ValueError(f"config file {path} defines no model")
    config.launcher = launcher
    config.work_dir = work_dir or config.get("work_dir") or str(Path("work_dirs") / path.stem)
    return config


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Give a tool `--cfg-options`, as mmdet's tools have it; its value goes into `load_config`."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help='override settings of the config: a.b=1 c="[1,2]" d="[(1,2),(3,4)]"',
    )


def build_detector(config: Config) -> nn.Module:
    """Build the config's model on the CPU, without weights; finds wrong types, names and numbers.

    Raises ValueError for a type that is not registered and for arguments that a type does not
    take; what a constructor says about the value of an argument passes through.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    try:
        return MODELS.build(deepcopy(config.model))
    except KeyError as error:
        if "registry" not in str(error):
            raise
        raise ValueError(f"the config's model: {_one_line(error)}") from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"the config's model: {_one_line(error)}") from error


def use_amp(config: Config) -> None:
    """Switch mixed precision on, as `--amp` does; a dtype in the config is kept.

    Raises ValueError without a GPU: mmengine's AmpOptimWrapper needs one.
    """
    if not torch.cuda.is_available():
        raise ValueError("--amp needs a GPU, and PyTorch sees none here; leave it out")
    kind = config.optim_wrapper.get("type", "OptimWrapper")
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ValueError(f"--amp cannot replace the config's optim_wrapper of type {kind!r}")
    config.optim_wrapper.type = "AmpOptimWrapper"
    config.optim_wrapper.setdefault("loss_scale", "dynamic")
    if "FSDP" in config.get("strategy", {}).get("type", ""):
        config.optim_wrapper.setdefault("use_fsdp", True)  # a gradient scaler for shards


def check_full_precision(config: Config) -> None:
    """Raises ValueError if settings of mixed precision are there without `--amp`."""
    wrapper = config.get("optim_wrapper") or {}
    given = [key for key in ("dtype", "loss_scale") if key in wrapper]
    if given and wrapper.get("type", "OptimWrapper") == "OptimWrapper":
        raise ValueError(
            f"optim_wrapper.{given[0]} is a setting of mixed precision: give --amp too, or leave "
            "it out"
        )


def use_auto_scale_lr(config: Config) -> None:
    """Switch the scaling of the learning rate by batch size on, as `--auto-scale-lr` does.

    Raises ValueError if the config does not say which batch size its learning rate is for, or if
    that is of another number of passes, which mmengine does not scale by.
    """
    if "base_batch_size" not in config.get("auto_scale_lr", {}):
        raise ValueError(
            "--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config: "
            "the batch size that its learning rate is meant for"
        )
    passes = config.get("optim_wrapper", {}).get("accumulative_counts", 1)
    meant = config.auto_scale_lr.get("passes", passes)
    if passes != meant:
        raise ValueError(
            f"--auto-scale-lr scales by the images of a pass, and accumulative_counts={passes} "
            f"is not the {meant} that the learning rate is meant for: set "
            "optim_wrapper.optimizer.lr by the images of a step yourself"
        )
    config.auto_scale_lr.enable = True


def use_tensorboard(config: Config) -> None:
    """Write losses, learning rates and metrics for TensorBoard too, as `--tensorboard` does.

    They go into `<work dir>/<time>/vis_data`. Raises ValueError where tensorboard is missing.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
        ) from error
    if not config.get("visualizer"):
        config.visualizer = {"type": "DetLocalVisualizer", "name": "visualizer"}
    backends = config.visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    if all("TensorboardVisBackend" not in backend["type"] for backend in backends):
        backends = [*backends, {"type": "TensorboardVisBackend"}]
    config.visualizer.vis_backends = backends


def use_show(config: Config, *, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draw predictions while testing, on the screen (`--show`) or into files (`--show-dir`).

    Raises ValueError without a screen to show them on, or a visualization hook to draw them.
    """
    if show and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("--show needs a screen and DISPLAY is not set; use --show-dir DIRECTORY")
    hook = config.get("default_hooks", {}).get("visualization")
    if hook is None:
        raise ValueError(
            "--show and --show-dir need the drawing hook in the config: "
            "default_hooks = dict(visualization=dict(type='DetVisualizationHook'))"
        )
    hook.draw = True
    hook.show = show
    hook.wait_time = wait_time
    if show_dir:
        hook.test_out_dir = show_dir


def use_tta(config: Config) -> bool:
    """Test on every image and its mirror image, as `--tta` does; the config may say otherwise.

    mmdet merges boxes only, so a mask head is taken out, and mask AP with it: True if so.
    """
    boxes_only = bool(config.model.get("roi_head", {}).get("mask_head"))
    if boxes_only:
        config.model.roi_head.mask_head = None
        config.model.roi_head.mask_roi_extractor = None
        evaluators = config.test_evaluator
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if "segm" in evaluator.get("metric", ()):
                evaluator.metric = "bbox"
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_pipeline" not in config:
        config.tta_pipeline = _mirror_pipeline(dataset.pipeline)
    if "tta_model" not in config:
        nms = {"type": "nms", "iou_threshold": 0.5}
        config.tta_model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
    dataset.pipeline = config.tta_pipeline
    config.model = ConfigDict(**config.tta_model, module=config.model)
    return boxes_only


def _mirror_pipeline(pipeline: list[ConfigDict]) -> list[ConfigDict]:
    """A test pipeline that ends in the image and its mirror image, each packed."""
    pack = deepcopy(pipeline[-1])
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pack.meta_keys = (*pack.get("meta_keys", keys), "flip", "flip_direction")
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return [*deepcopy(pipeline[:-1]), ConfigDict(type="TestTimeAug", transforms=[flips, [pack]])]


def _evaluate(path: Path) -> Config:
    """The config of a file; ValueError names the file, line and cause of what stops it."""
    try:
        if path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"))
        return Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f"config file {path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # a config is a program of the user's: anything can come out of it
        cause = f"{type(error).__name__}: {_one_line(error.__cause__ or error)}"
        raise ValueError(f"config file {path} cannot be read: {cause}") from error


def _one_line(error: BaseException) -> str:
    """An exception's text without its line breaks, nor the quotes that KeyError puts around it."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())
