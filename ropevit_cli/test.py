"""Evaluates a detector on the test data; takes the arguments of MMDetection's tools/test.py."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ropevit_cli._arguments import add_cfg_options, add_detector, add_launcher, detector_arguments

if TYPE_CHECKING:
    from mmengine.config import Config

HELP = "evaluate a detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_detector(parser)
    add("--work-dir", help="directory for logs and metrics")
    help = "also save the predictions: FILE.json as COCO results, FILE.pkl for mmdet's tools"
    add("--out", metavar="FILE", type=_results_file, help=help)
    add("--show", action="store_true", help="show predictions on the screen")
    add("--show-dir", help="render predictions into WORK_DIR/TIMESTAMP/SHOW_DIR")
    add("--wait-time", type=float, default=2, help="seconds that --show displays an image")
    help = "test-time augmentation: merge the boxes of an image and its mirror image, no masks"
    add("--tta", action="store_true", help=help)
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
    from ropevit_mmdet.engine.run_start import run_start
    from ropevit_mmdet.evaluation.dump_coco_results import DumpCocoResults
    from ropevit_mmdet.weights.detector_checkpoint import skip_init

    with run_start() as release:
        config, warnings = prepare(args)
        with launched(config):
            if args.tta and use_tta(config):
                warnings.append("--tta merges only boxes: no masks are predicted or evaluated")
            runner = RUNNERS.build(config)
            runner.register_hook(release)
            runner.start_is_checked = True
            skip_init(runner.model)
            for warning in warnings:
                runner.logger.warning(warning)
            if not args.out:
                return runner.test()
            dataset = runner.test_loop.dataloader.dataset
            as_json = args.out.endswith(".json")
            dump = DumpCocoResults(args.out, dataset) if as_json else DumpDetResults(args.out)
            runner.test_evaluator.metrics.append(dump)
            metrics = runner.test()
            if dump.results:  # a MultiDatasetsEvaluator evaluates no more metrics than datasets
                dump.evaluate(len(dataset))
            return metrics


def prepare(args: argparse.Namespace) -> "tuple[Config, list[str]]":
    """Returns the config of the run, and warnings, after all checks that need no work dir."""
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.compat.checkpoint import embedded_config
    from ropevit_mmdet.datasets import check_datasets, compare_classes
    from ropevit_mmdet.engine.config import build_detector, load_config, use_show
    from ropevit_mmdet.engine.config_checks import check_config
    from ropevit_mmdet.weights.detector_checkpoint import fitted, read_detector_checkpoint

    given, checkpoint, _ = detector_arguments(args)
    content = read_detector_checkpoint(checkpoint)
    given = given or embedded_config(content, checkpoint)
    run = dict(work_dir=args.work_dir, launcher=args.launcher)
    config = load_config(given, args.cfg_options, **run)
    check_output_directory(config.work_dir)
    if args.out:
        check_output_directory(Path(args.out).parent)
    config.load_from = checkpoint
    config.resume = False
    if config.launcher == "none":  # only training is sharded; a checkpoint has the full model
        config.pop("strategy", None)
        config.pop("runner_type", None)
    if args.show or args.show_dir:
        use_show(config, show=args.show, show_dir=args.show_dir, wait_time=args.wait_time)
    warnings = check_config(config, ("test",))
    check_datasets(config, ("test",))
    fitted(build_detector(config, random=False), content["state_dict"], checkpoint)
    return config, warnings + compare_classes(config, "test", content, checkpoint)


def _results_file(name: str) -> str:
    if not name.endswith((".json", ".pkl", ".pickle")):
        raise argparse.ArgumentTypeError(f"{name} must end in .json, .pkl or .pickle")
    return name
