"""Evaluates a detector on the test data; takes the arguments of MMDetection's tools/test.py."""

import argparse
from typing import TYPE_CHECKING

from ropevit_cli._arguments import add_cfg_options, add_config, add_launcher

if TYPE_CHECKING:
    from mmengine.config import Config

HELP = "evaluate a detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument("--work-dir", help="directory for logs and metrics")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=_results_file,
        help="also save the predictions: FILE.json as COCO results, FILE.pkl for mmdet's tools",
    )
    parser.add_argument("--show", action="store_true", help="show predictions on the screen")
    parser.add_argument("--show-dir", help="render predictions into WORK_DIR/TIMESTAMP/SHOW_DIR")
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds that --show displays an image"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: merge the boxes of an image and its mirror image, no masks",
    )
    add_cfg_options(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    evaluate(args)


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """Returns the metrics by name."""
    from mmdet.evaluation import DumpDetResults
    from mmdet.registry import RUNNERS

    from ropevit_mmdet.engine.config import use_tta
    from ropevit_mmdet.engine.launcher import launched
    from ropevit_mmdet.evaluation.dump_coco_results import DumpCocoResults

    with launched(config := prepare(args)):
        boxes_only = args.tta and use_tta(config)
        runner = RUNNERS.build(config)
        if boxes_only:
            runner.logger.warning("--tta merges only boxes: no masks are predicted or evaluated")
        if args.out and args.out.endswith(".json"):
            dataset = runner.test_loop.dataloader.dataset
            runner.test_evaluator.metrics.append(DumpCocoResults(args.out, dataset))
        elif args.out:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        return runner.test()


def prepare(args: argparse.Namespace) -> "Config":
    """Returns the config of the run, after all checks that are possible before it writes."""
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.datasets import check_datasets
    from ropevit_mmdet.engine.config import build_detector, load_config, use_show
    from ropevit_mmdet.weights.checkpoint import check_fit
    from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint

    config = load_config(
        args.config, args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    check_output_directory(config.work_dir)
    config.load_from = args.checkpoint
    config.resume = False
    if config.launcher == "none":  # only training is sharded; a checkpoint has the full model
        config.pop("strategy", None)
        config.pop("runner_type", None)
    if args.show or args.show_dir:
        use_show(config, show=args.show, show_dir=args.show_dir, wait_time=args.wait_time)
    check_datasets(config, ("test",))
    weights = read_detector_checkpoint(args.checkpoint)["state_dict"]
    check_fit(build_detector(config).state_dict(), weights, args.checkpoint)
    return config


def _results_file(name: str) -> str:
    if not name.endswith((".json", ".pkl", ".pickle")):
        raise argparse.ArgumentTypeError(f"{name} must end in .json, .pkl or .pickle")
    return name
