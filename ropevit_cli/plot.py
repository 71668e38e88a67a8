"""Plots runs, or the results of a test.

`plot WORK_DIR...` plots losses, learning rate and AP of runs in one figure. `plot RESULTS --config
CONFIG` plots the confusion matrix and precision over recall of a JSON file from `ropevit test
--out FILE.json` or `ropevit predict`.
"""

import argparse
from pathlib import Path

from ropevit_cli._arguments import add_cfg_options

RESULTS = "results.json"
HELP = "plot the curves of runs, or a confusion matrix and precision over recall"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = "working directories or scalars.json of runs, as PATH or NAME=PATH; or one result file"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=help)
    runs = parser.add_argument_group("runs")
    runs.add_argument("--out", metavar="FILE.png", help="default: run.png")
    help = "of validation (default: coco/bbox_mAP)"
    runs.add_argument("--metric", default="coco/bbox_mAP", help=help)
    results = parser.add_argument_group("results")
    results.add_argument("--config", help="config of the test: file or packaged name")
    help = "directory to write (default: results)"
    results.add_argument("--out-dir", default="results", help=help)
    help = "confusion matrix: drop lower scores (default: 0.3)"
    results.add_argument("--score-thr", type=float, default=0.3, help=help)
    help = "confusion matrix: minimum IoU of a detection and its object (default: 0.5)"
    results.add_argument("--tp-iou-thr", type=float, default=0.5, help=help)
    add_cfg_options(results)


def run(args: argparse.Namespace) -> None:
    (plot_results if args.config else plot_curves)(args)


def plot_curves(args: argparse.Namespace) -> None:
    """Plots runs and prints a line for each."""
    import math

    from ropevit_mmdet.visualization import check_png, plot_runs, read_run, save_figure

    out, runs = args.out or "run.png", []
    check_png(out)
    for text in args.paths:
        name, equals, path = text.partition("=")
        named = equals and not Path(text).exists()
        runs.append(read_run(path, name) if named else read_run(text))
    save_figure(plot_runs(runs, metric=args.metric), out)
    for one in runs:
        parts = [f"loss {e['loss']:.4g} at iteration {e['step']}" for e in one.train[-1:]]
        measured = [entry for entry in one.val if not math.isnan(entry.get(args.metric, math.nan))]
        if measured:
            best = max(measured, key=lambda entry: entry[args.metric])
            parts.append(f"best {args.metric} {best[args.metric]:.3f} at iteration {best['step']}")
        print(f"{one.name}: {', '.join(parts)}")
    print(f"figure: {out}")


def plot_results(args: argparse.Namespace) -> None:
    """Plots the results of a test and writes their numbers."""
    import json

    from ropevit_mmdet._output import check_output_directory, output_directory
    from ropevit_mmdet.apis.ground_truth import load_results
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.evaluation.confusion_matrix import confusion_matrix, pair_objects
    from ropevit_mmdet.evaluation.precision_recall import IOUS, as_json, precision_recall
    from ropevit_mmdet.visualization import (
        plot_confusion_matrix,
        plot_precision_recall,
        save_figure,
    )

    if args.out:
        raise UserError(f"--out {args.out}: with --config, name a directory: --out-dir DIRECTORY")
    file, *others = args.paths
    thresholds = dict(score_thr=args.score_thr, tp_iou_thr=args.tp_iou_thr)
    check_output_directory(args.out_dir)
    if others or Path(args.out_dir, RESULTS).resolve() == Path(file).resolve():
        issue = "and --config: one result file at a time" if others else "would be overwritten"
        raise UserError(f"{' '.join(args.paths)} {issue}")
    detections, annotations = load_results(file, load_config(args.config, args.cfg_options))
    names = annotations.names
    matrix = confusion_matrix(pair_objects(detections, annotations, **thresholds), len(names))
    curves = precision_recall(detections, annotations)
    title = f"scores from {args.score_thr}, IoU from {args.tp_iou_thr}"
    figures = {
        "confusion_matrix": plot_confusion_matrix(matrix, names, title),
        "precision_recall": plot_precision_recall(names, curves.recall, curves.precision, IOUS),
    }
    with output_directory(args.out_dir) as directory:
        for name, figure in figures.items():
            save_figure(figure, directory / f"{name}.png")
        numbers = json.dumps(as_json(matrix, curves, **thresholds))
        (directory / RESULTS).write_text(numbers + "\n")
    for iou, mean in zip(IOUS, curves.means()[1:]):
        print(f"box AP at IoU {iou}: {mean:.3f}")
    print(f"figures and {RESULTS}: {args.out_dir}")
