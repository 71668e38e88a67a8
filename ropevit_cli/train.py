"""Trains a detector from a config; takes the arguments of MMDetection's tools/train.py."""

import argparse
from typing import TYPE_CHECKING

from ropevit_cli._arguments import add_cfg_options, add_config, add_launcher

if TYPE_CHECKING:
    from mmengine.config import Config

HELP = "train a detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--work-dir", help="directory for logs and checkpoints")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision; needs a GPU")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size, from the config's base_batch_size",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write for TensorBoard: tensorboard --logdir WORK_DIR",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="continue from this checkpoint, by default from the last one in the work dir",
    )
    add_cfg_options(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    from mmdet.registry import RUNNERS

    from ropevit_mmdet.engine.launcher import launched
    from ropevit_mmdet.engine.work_dir_lock import lock_work_dir

    config = prepare(args)
    with lock_work_dir(config.work_dir, args.launcher), launched(config):
        if args.resume == "auto":  # again: the previous run may have saved until now
            resume_newest(config)
        RUNNERS.build(config).train()


def prepare(args: argparse.Namespace) -> "Config":
    """Returns the config of the run, after all checks that are possible before it writes."""
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.datasets import check_datasets
    from ropevit_mmdet.engine import config as options
    from ropevit_mmdet.engine.hooks.rope_vit_checks import check_normalization, check_strides
    from ropevit_mmdet.weights.detector_checkpoint import check_start

    config = options.load_config(
        args.config, args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    check_output_directory(config.work_dir)
    (options.use_amp if args.amp else options.check_full_precision)(config)
    if args.auto_scale_lr:
        options.use_auto_scale_lr(config)
    if args.tensorboard:
        options.use_tensorboard(config)
    if args.resume is None and config.get("resume") and not config.get("load_from"):
        args.resume = "auto"
    if args.resume == "auto":
        resume_newest(config)
    elif args.resume:
        config.resume, config.load_from = True, args.resume
    check_datasets(config, ("train", "val"))
    model = options.build_detector(config)
    check_strides(model)
    if not config.get("load_from"):
        check_normalization(model)
    check_start(model, config)
    return config


def resume_newest(config: "Config") -> None:
    """Continues from the newest checkpoint of the work dir, or starts if there is none."""
    from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint

    newest = latest_checkpoint(config.work_dir)
    config.resume = newest is not None
    if newest is not None:
        config.load_from = str(newest)
