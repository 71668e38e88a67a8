"""Trains a detector from a config; takes the arguments of MMDetection's tools/train.py."""

import argparse
from typing import TYPE_CHECKING

from ropevit_cli._arguments import add_cfg_options, add_config, add_launcher, positive_int

if TYPE_CHECKING:
    from mmengine.config import Config

HELP = "train a detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config(parser)
    add("--work-dir", help="directory for logs and checkpoints")
    add("--amp", action="store_true", help="train in mixed precision; needs a GPU")
    help = "scale the learning rate by the batch size, from the config's base_batch_size"
    add("--auto-scale-lr", action="store_true", help=help)
    help = "also write losses, learning rates and AP for these trackers"
    trackers = ["tensorboard", "wandb", "mlflow"]
    add("--log", nargs="+", action="extend", default=[], choices=trackers, help=help)
    help = "the same as --log tensorboard; then: tensorboard --logdir WORK_DIR"
    add("--tensorboard", action="append_const", dest="log", const="tensorboard", help=help)
    help = "end after this many validations without a better box AP (default: 5)"
    add("--early-stop", nargs="?", const=5, type=positive_int, metavar="PATIENCE", help=help)
    help = "continue from this checkpoint, by default from the last one in the work dir"
    add("--resume", nargs="?", const="auto", metavar="CKPT", help=help)
    add_cfg_options(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    from mmdet.registry import RUNNERS

    from ropevit_mmdet.engine.launcher import launched
    from ropevit_mmdet.engine.progress_bar import progress_bar
    from ropevit_mmdet.engine.run_start import run_start
    from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
    from ropevit_mmdet.weights.detector_checkpoint import skip_init

    with run_start() as release:
        config, warnings, has_all = prepare(args)
        checked = config.get("load_from")
        with lock_work_dir(config.work_dir, args.launcher), launched(config):
            if args.resume == "auto":  # again: the previous run may have saved until now
                resume_newest(config)
            runner = RUNNERS.build(config)
            runner.register_hook(release)
            runner.start_is_checked = checked == config.get("load_from")
            for warning in warnings:
                runner.logger.warning(warning)
            if has_all:
                skip_init(runner.model)
            with progress_bar(runner):
                runner.train()


def prepare(args: argparse.Namespace) -> "tuple[Config, list[str], bool]":
    """All checks that need no work dir.

    Returns:
        The config of the run, warnings, and whether `load_from` has all weights of the backbone.
    """
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.datasets import check_datasets, compare_classes
    from ropevit_mmdet.engine import config as options
    from ropevit_mmdet.engine.config_checks import check_config
    from ropevit_mmdet.engine.hooks import rope_vit_checks as checks
    from ropevit_mmdet.weights.detector_checkpoint import check_start, has_backbone

    run = dict(work_dir=args.work_dir, launcher=args.launcher)
    config = options.load_config(args.config, **run)
    options.use_log(config, args.log)  # first: --cfg-options may set its back-ends
    config = options.load_config(config, args.cfg_options, **run)
    check_output_directory(config.work_dir)
    if args.amp:
        options.use_amp(config)
    if args.auto_scale_lr:
        options.use_auto_scale_lr(config)
    if args.early_stop:
        options.use_early_stop(config, args.early_stop)
    if args.resume is None and config.get("resume") and not config.get("load_from"):
        args.resume = "auto"
    if args.resume == "auto":
        resume_newest(config)
    elif args.resume:
        config.resume, config.load_from = True, args.resume
    warnings = check_config(config, ("train", "val"))
    check_datasets(config, ("train", "val"))
    model = options.build_detector(config, random=False)
    checks.check_feature_maps(model)
    checks.check_strides(model)
    checks.check_config_classes(model, config, ("train", "val"))
    if not config.get("load_from"):
        checks.check_normalization(model)
    checkpoint = check_start(model, config)
    randomness = config.get("randomness") or {}
    if config.get("resume") and randomness.get("seed") is None:  # the sampler is built before
        config.randomness = dict(randomness, seed=checkpoint["meta"].get("seed"))
    warnings += compare_classes(config, "train", checkpoint, str(config.get("load_from")))
    return config, warnings, has_backbone(model, checkpoint)


def resume_newest(config: "Config") -> None:
    """Continues from the newest checkpoint of the work dir, or starts if there is none."""
    from ropevit_mmdet.engine.hooks import latest_checkpoint

    newest = latest_checkpoint(config.work_dir)
    config.resume = newest is not None
    if newest is not None:
        config.load_from = str(newest)
