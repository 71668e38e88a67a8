"""Train a detector from a config; takes what mmdet's own tools/train.py takes."""

import argparse
import os
import sys
from collections.abc import Sequence

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet._output import check_output_directory
from ropevit_mmdet.datasets.checked_coco import check_datasets
from ropevit_mmdet.engine.config import (
    add_cfg_options,
    build_detector,
    check_full_precision,
    load_config,
    use_amp,
    use_auto_scale_lr,
    use_tensorboard,
)
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_colors, check_strides
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import launched
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.weights.detector_checkpoint import check_start


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    setup_cache_size_limit_of_dynamo()
    with one_line_errors():
        config = prepare(args)
        with lock_work_dir(config.work_dir, args.launcher), launched(config):
            if args.resume == "auto":  # again: the run before may have been saving until now
                resume_newest(config)
            runner_type = RUNNERS.get(config.runner_type) if "runner_type" in config else Runner
            runner_type.from_cfg(config).train()


def prepare(args: argparse.Namespace) -> Config:
    """The config of the run, checked as far as it can be before anything is written."""
    config = load_config(
        args.config, args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    check_output_directory(config.work_dir)
    if args.amp:
        use_amp(config)
    else:
        check_full_precision(config)
    if args.auto_scale_lr:
        use_auto_scale_lr(config)
    if args.tensorboard:
        use_tensorboard(config)
    if args.resume is None and config.get("resume") and not config.get("load_from"):
        args.resume = "auto"
    if args.resume == "auto":
        resume_newest(config)
    elif args.resume:
        config.resume, config.load_from = True, args.resume
    check_datasets(config, ("train", "val"))
    model = build_detector(config)
    check_strides(model)
    if not config.get("load_from"):
        check_colors(model)
    check_start(model, config)
    return config


def resume_newest(config: Config) -> None:
    """Continue from the newest checkpoint of the work dir; start where there is none."""
    newest = latest_checkpoint(config.work_dir)
    config.resume = newest is not None
    if newest is not None:
        config.load_from = str(newest)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
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
        help="write for TensorBoard too: tensorboard --logdir WORK_DIR",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="continue from this checkpoint, or without a name from the last one in the work dir",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="what started the processes of a distributed run; see tools/dist_train.sh",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
