"""Train, test and inspect a Mask R-CNN on the synthetic shapes: `python examples/demo.py`."""

import argparse
import io
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
import torchvision
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

import ropevit_mmdet
from ropevit_cli._arguments import add_cfg_options
from ropevit_mmdet._images import SUFFIXES, read_image
from ropevit_mmdet.apis import Detector, predict_files
from ropevit_mmdet.apis.predict import OVERLAY_DIRECTORY
from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.overlays import contact_sheet

CONFIG = "configs/shapes_maskrcnn.py"
NUM_PREDICTED = 12  # test images with rendered predictions
SCORE_THR = 0.5
METRICS = {"bbox": "box", "segm": "mask"}
APS = ("mAP", "mAP_50", "mAP_75")


class QuietRunner(Runner):
    """A runner that prints only progress and warnings; the log file has everything."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        logger.handlers[0].addFilter(
            lambda record: record.module == "logger_hook" or record.levelno >= logging.WARNING
        )
        return logger


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message=".*anchor_generator is deprecated")  # mmdet's own
    started = time.time()
    with one_line_errors():
        config = load_config(args.config, args.cfg_options, work_dir=args.work_dir)
        config.randomness = {"seed": args.seed}
        work_dir = Path(config.work_dir)
        with lock_work_dir(work_dir):
            summary = run(config, work_dir)
    modules = (torch, torchvision, mmdet, mmengine, mmcv, ropevit_mmdet)
    versions = {"python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in modules}
    summary |= {"seed": args.seed, "config": args.config, "versions": versions}
    (work_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(summary)}\n")
    print(f"training took {summary['train_seconds']:.0f} s of {time.time() - started:.0f} s\n")
    print(f"predictions   {work_dir / 'predictions.png'}")
    print(f"results       {work_dir / 'summary.json'}")
    command = f"ropevit predict {args.config} {summary['checkpoint']}"
    print(f"next          {command} IMAGES --out-dir outputs")


def run(config: Config, work_dir: Path) -> dict[str, Any]:
    """Generates the data, trains, tests and renders predictions; returns the summary."""
    root = Path(config.test_dataloader.dataset.data_root)
    print(f"[1/4] generate the dataset in {root}")
    shapes.generate(root)

    print(f"[2/4] train; log and checkpoints are in {work_dir}")
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    # One evaluator per metric: with several in one, mmdet reports AP per class only for the last.
    evaluator = config.test_evaluator.to_dict()
    config.test_evaluator = [
        {**evaluator, "metric": metric, "prefix": metric, "classwise": True}
        for metric in METRICS
        if metric in evaluator["metric"]
    ]
    runner = QuietRunner.from_cfg(config)
    train_started = time.time()
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        runner.train()
    train_seconds = time.time() - train_started

    print("[3/4] test on images that were not trained on")
    with redirect_stdout(io.StringIO()):
        metrics = runner.test()

    print("[4/4] render predictions")
    checkpoint = os.path.relpath(latest_checkpoint(work_dir))
    images = runner.test_dataloader.dataset
    render_predictions(config, checkpoint, Path(images.data_prefix["img"]), work_dir)
    return {
        **summarize(metrics, images.metainfo["classes"]),
        "train_seconds": round(train_seconds, 1),
        "iterations": runner.iter,
        "checkpoint": checkpoint,
        "test_images": len(images),
        "device": str(next(runner.model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def render_predictions(config: Config, checkpoint: str, image_dir: Path, work_dir: Path) -> None:
    """Writes `predictions/` for some test images, and `predictions.png`, a sheet of them."""
    files = sorted(file for file in image_dir.iterdir() if file.suffix.lower() in SUFFIXES)
    files = files[:: max(1, len(files) // NUM_PREDICTED)][:NUM_PREDICTED]
    detector, out_dir = Detector(checkpoint, config=config), work_dir / "predictions"
    predict_files(detector, files, out_dir, score_thr=SCORE_THR)
    sheet = contact_sheet([read_image(f) for f in sorted((out_dir / OVERLAY_DIRECTORY).iterdir())])
    Image.fromarray(sheet).save(work_dir / "predictions.png")


def summarize(metrics: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    """AP over all IoU thresholds, at 0.50 and at 0.75, and per class."""
    used = [metric for metric in METRICS if f"{metric}/{metric}_mAP" in metrics]
    summary: dict[str, Any] = {
        f"{metric}_{ap}": float(metrics[f"{metric}/{metric}_{ap}"]) for metric in used for ap in APS
    }
    summary["per_class"] = {
        name: {f"{metric}_mAP": float(metrics[f"{metric}/{name}_precision"]) for metric in used}
        for name in names
    }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as text: a line for all classes, then one per class."""
    used = [metric for metric in METRICS if f"{metric}_mAP" in summary]
    head = "".join(f"{METRICS[metric]:>7} AP   AP50   AP75" for metric in used)
    values = "".join(
        "{:10.3f}{:7.3f}{:7.3f}".format(*(summary[f"{metric}_{ap}"] for ap in APS))
        for metric in used
    )
    title = f"{summary['test_images']} test images"
    lines = [f"{title:22}{head}", f"{'all classes':22}{values}"]
    for name, of_class in summary["per_class"].items():
        cells = "".join(f"{of_class[f'{metric}_mAP']:10.3f}{'':14}" for metric in used)
        lines.append(f"  {name:20}{cells}".rstrip())
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_argument("--work-dir", help="for all results (default: work_dirs/NAME_OF_CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    add_cfg_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
