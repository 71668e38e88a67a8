"""The whole job on the embedded dataset: make it, train Mask R-CNN on it, evaluate, look at it."""

import argparse
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

try:
    import ropevit_mmdet
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

import mmcv
import mmdet
import mmengine
import torch
import torchvision
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from tqdm import tqdm

from ropevit_mmdet._images import SUFFIXES, read_image
from ropevit_mmdet.apis.predict import OVERLAY_DIRECTORY, Predictor, predict_files
from ropevit_mmdet.datasets.checked_coco import check_datasets
from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.engine.config import add_cfg_options, build_detector, load_config
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.overlays import contact_sheet
from ropevit_mmdet.weights.detector_checkpoint import check_start

CONFIG = "configs/shapes_maskrcnn.py"
SHOWN = 12  # test images to draw predictions over
SCORE_THR = 0.5
PARTS = ("bbox", "segm")


class QuietRunner(Runner):
    """mmengine's runner, with only progress and warnings on the screen; the log file has it all."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        logger.handlers[0].addFilter(
            lambda record: record.module == "logger_hook" or record.levelno >= logging.WARNING
        )
        return logger


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    setup_cache_size_limit_of_dynamo()
    warnings.filterwarnings("ignore", message=".*anchor_generator is deprecated")  # mmdet of itself
    started = time.time()
    with one_line_errors():
        config = load_config(args.config, args.cfg_options, work_dir=args.work_dir)
        with lock_work_dir(config.work_dir):
            summary = run(config, args.seed)
    summary |= {"seed": args.seed, "config": args.config, "versions": versions()}
    work_dir = Path(config.work_dir)
    (work_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(summary)}\n")
    seconds = summary["train_seconds"]
    print(f"training took {seconds:.0f} s, all together {time.time() - started:.0f} s\n")
    print(what_next(args.config, summary["checkpoint"], work_dir))


def run(config: Config, seed: int) -> dict[str, Any]:
    """Make the data, train, test and draw; what the summary says of that."""
    print("[1/4] the dataset")
    make_data(Path(config.test_dataloader.dataset.data_root))
    prepare(config, seed)
    work_dir = Path(config.work_dir)

    print(f"[2/4] training; everything goes into {work_dir}")
    runner = QuietRunner.from_cfg(config)
    train_started = time.time()
    with redirect_stdout(io.StringIO()):  # pycocotools prints; the log is not affected
        runner.train()
    train_seconds = time.time() - train_started

    print("[3/4] evaluating on the test split, which training never saw")
    with redirect_stdout(io.StringIO()):
        metrics = runner.test()

    print("[4/4] drawing predictions")
    checkpoint = os.path.relpath(latest_checkpoint(work_dir))
    draw_predictions(config, checkpoint, work_dir)
    images = runner.test_dataloader.dataset
    return {
        **summarize(metrics, images.metainfo["classes"]),
        "train_seconds": round(train_seconds, 1),
        "iterations": runner.iter,
        "checkpoint": checkpoint,
        "test_images": len(images),
        "device": str(next(runner.model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def make_data(root: Path) -> None:
    with tqdm(desc="drawing", unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = shapes.generate(root, progress=progress)
    print(f"      {root}: {'there already' if made['reused'] else 'made'}")


def prepare(config: Config, seed: int) -> None:
    """Set the seed, have AP per class reported, and check all before anything is written."""
    config.randomness = {"seed": seed}
    config.val_dataloader = config.val_cfg = config.val_evaluator = None  # tested in the end
    # With several parts in one metric, mmdet reports per class only the last part's AP.
    config.test_evaluator = [
        {**deepcopy(config.test_evaluator), "metric": part, "prefix": part, "classwise": True}
        for part in PARTS
        if part in config.test_evaluator.metric
    ]
    check_datasets(config)
    check_start(build_detector(config), config)


def draw_predictions(config: Config, checkpoint: str, work_dir: Path) -> None:
    """Write `predictions/`, of some test images, and one sheet of them, `predictions.png`."""
    dataset = config.test_dataloader.dataset
    directory = Path(dataset.data_root) / dataset.data_prefix.img
    files = sorted(file for file in directory.iterdir() if file.suffix.lower() in SUFFIXES)
    files = files[:: max(1, len(files) // SHOWN)][:SHOWN]
    predictor = Predictor(config, checkpoint)
    predict_files(predictor, files, work_dir / "predictions", score_thr=SCORE_THR)
    drawn = sorted((work_dir / "predictions" / OVERLAY_DIRECTORY).iterdir())
    sheet = contact_sheet([read_image(file) for file in drawn])
    Image.fromarray(sheet).save(work_dir / "predictions.png")


def summarize(metrics: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    """The figures of the summary: AP in all, at IoU 0.50 and 0.75, and per class."""
    summary: dict[str, Any] = {}
    parts = [part for part in PARTS if f"{part}/{part}_mAP" in metrics]
    for part in parts:
        for figure in ("mAP", "mAP_50", "mAP_75"):
            summary[f"{part}_{figure}"] = float(metrics[f"{part}/{part}_{figure}"])
    summary["per_class"] = {
        name: {f"{part}_mAP": float(metrics[f"{part}/{name}_precision"]) for part in parts}
        for name in names
    }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary's figures as text."""
    parts = [part for part in PARTS if f"{part}_mAP" in summary]
    titles = {"bbox": "box", "segm": "mask"}
    figures = ("mAP", "mAP_50", "mAP_75")
    head = f"{summary['test_images']} test images"
    lines = [
        f"{head:22}" + "".join(f"{titles[part]:>7} AP   AP50   AP75" for part in parts),
        f"{'all classes':22}"
        + "".join(
            f"{summary[f'{part}_mAP']:10.3f}"
            + "".join(f"{summary[f'{part}_{figure}']:7.3f}" for figure in figures[1:])
            for part in parts
        ),
    ]
    for name, figures_of_class in summary["per_class"].items():
        cells = "".join(f"{figures_of_class[f'{part}_mAP']:10.3f}{'':14}" for part in parts)
        lines.append(f"  {name:20}{cells}".rstrip())
    return "\n".join(lines)


def versions() -> dict[str, str]:
    modules = (torch, torchvision, mmdet, mmengine, mmcv, ropevit_mmdet)
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{module.__name__: module.__version__ for module in modules}}


def this_python() -> str:
    """What to type for this very Python: seen from here if it is below, as `.venv/bin/python`."""
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith(os.pardir) else path


def what_next(config: str, checkpoint: str, work_dir: Path) -> str:
    return f"""look at   {work_dir / "predictions.png"}
figures   {work_dir / "summary.json"}

next: your own images
    {this_python()} tools/predict.py {config} {checkpoint} IMAGES --out-dir outputs
training on COCO, or from your own mmdet config: see README.md"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_argument(
        "--work-dir", help="directory for all results (default: work_dirs/<name of the config>)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    add_cfg_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
