"""Compares backbones under one detection config: a table of AP and cost, and plots.

Each NAME=SOURCE is trained and tested with the same config, seeds and data order. SOURCE is a
birder checkpoint (path, URL or birder://NAME), 'scratch', or a config whose model.backbone is
compared. A second call continues an interrupted comparison.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ropevit_cli._arguments import add_cfg_options, positive_int

HELP = "compare backbones under one detection config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file or packaged name, with a RoPEViT")
    parser.add_argument("variants", nargs="+", metavar="NAME=SOURCE", help="backbones to compare")
    parser.add_argument("--work-dir", help="directory (default: work_dirs/compare_<config>)")
    help = "runs of each backbone (default: 2)"
    parser.add_argument("--seeds", type=positive_int, default=2, help=help)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    from ropevit_mmdet.apis.compare import Run, check_base, check_directories, parse_variants
    from ropevit_mmdet.datasets import check_datasets
    from ropevit_mmdet.engine.config import load_config

    base = load_config(args.config, args.cfg_options)
    check_base(base)
    check_datasets(base)
    root = Path(args.work_dir or f"work_dirs/compare_{Path(args.config).stem}")
    variants = parse_variants(args.variants, base)
    runs = [
        Run(name, config, seed=seed)
        for seed in range(args.seeds)
        for name, config in variants.items()
    ]
    check_directories(runs, root)
    results, failed = train_and_test(runs, root)
    if results:
        write(results, failed, root)
    if failed:
        log(f"error: {len(failed)} of {len(variants)} backbones failed: {', '.join(failed)}")
    return 1 if failed else 0


def train_and_test(runs: list, root: Path) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Returns the results by backbone, and the error of each that failed."""
    from ropevit_mmdet.apis.compare import result_of
    from ropevit_mmdet.errors import UserError

    results: dict[str, list[dict]] = {}
    failed: dict[str, str] = {}
    for index, one in enumerate(runs):
        if one.name in failed:
            continue
        log(f"{index} of {len(runs)} runs done")
        try:
            results.setdefault(one.name, []).append(result_of(one, root, log))
        except UserError as error:
            log(str(error))
            failed[one.name] = str(error)
            del results[one.name]
    return results, failed


def write(results: dict[str, list[dict]], failed: dict[str, str], root: Path) -> None:
    """Measures the costs and writes table and plots."""
    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.apis.compare import markdown, measure_costs, plot_cost, rows_of
    from ropevit_mmdet.visualization import plot_runs, read_run, save_figure

    directories = [root / f"{name}-seed0" for name in results]
    costs = dict(zip(results, measure_costs(directories, log), strict=True))
    rows = rows_of(results, costs)
    texts = {
        "md": markdown(rows) + "".join(f"\nWithout {n}: {e}\n" for n, e in failed.items()),
        "json": json.dumps(rows, indent=1, allow_nan=False) + "\n",
    }
    for suffix, text in texts.items():
        with atomic_file(root / f"comparison.{suffix}") as file:
            file.write(text.encode())
    save_figure(plot_cost(rows), root / "ap_over_latency.png")
    logs = [read_run(path, name) for path, name in zip(directories, results, strict=True)]
    metrics = [key for one in logs for entry in one.val for key in entry if key.endswith("_mAP")]
    figure = plot_runs(logs, metric=(metrics or ["coco/bbox_mAP"])[0])
    save_figure(figure, root / "learning_curves.png")
    print(texts["md"])
    print(f"table and plots: {root}/comparison.md, .json, *.png")


def log(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")
