"""Evaluate a detector on the config's test data; takes what mmdet's own tools/test.py takes."""

import argparse
import os
import sys
from collections.abc import Sequence

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet._output import check_output_directory
from ropevit_mmdet.datasets.checked_coco import check_datasets
from ropevit_mmdet.engine.config import (
    add_cfg_options,
    build_detector,
    load_config,
    use_show,
    use_tta,
)
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import launched
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.weights.checkpoint import check_fit
from ropevit_mmdet.weights.detector_checkpoint import named, read_detector_checkpoint


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the metrics by name."""
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    setup_cache_size_limit_of_dynamo()
    with one_line_errors(), launched(config := prepare(args)):
        boxes_only = args.tta and use_tta(config)
        runner_type = RUNNERS.get(config.runner_type) if "runner_type" in config else Runner
        runner = runner_type.from_cfg(config)
        if boxes_only:
            runner.logger.warning(
                "--tta merges boxes only, as mmdet's test-time augmentation does: masks are "
                "neither predicted nor evaluated"
            )
        if args.out:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        return runner.test()


def prepare(args: argparse.Namespace) -> Config:
    """The config of the run, checked as far as it can be before anything is written."""
    config = load_config(
        args.config, args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    check_output_directory(config.work_dir)
    config.load_from = args.checkpoint
    config.resume = False
    if config.launcher == "none":  # FSDP spreads a training; a checkpoint is of the plain model
        config.pop("strategy", None)
        config.pop("runner_type", None)
    if args.show or args.show_dir:
        use_show(config, show=args.show, show_dir=args.show_dir, wait_time=args.wait_time)
    check_datasets(config, ("test",))
    weights = read_detector_checkpoint(args.checkpoint)["state_dict"]
    check_fit(build_detector(config).state_dict(), weights, named(args.checkpoint))
    return config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument("--work-dir", help="directory for logs and metrics")
    parser.add_argument("--out", metavar="FILE.pkl", help="also save the predictions")
    parser.add_argument("--show", action="store_true", help="show predictions on the screen")
    parser.add_argument(
        "--show-dir", help="draw predictions into this directory within the run's time-stamped one"
    )
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds that --show stays at an image"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: merge the boxes of an image and its mirror image, no masks",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="what started the processes of a distributed run; see tools/dist_test.sh",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out {args.out} must end in .pkl or .pickle")
    return args


if __name__ == "__main__":
    main()
