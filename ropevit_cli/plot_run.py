"""Draw the losses, learning rate and AP of runs from their logs, all runs in one figure."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.figure_file import check_png
from ropevit_mmdet.visualization.run_curves import METRIC, plot_runs
from ropevit_mmdet.visualization.run_log import RunLog, read_run


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        check_png(args.out)
        runs = [read_named(text) for text in args.runs]
        plot_runs(runs, args.out, metric=args.metric, x=args.x)
    for run in runs:
        print(summary(run, args.metric))
    print(f"figure: {args.out}")


def read_named(text: str) -> RunLog:
    """The run of `PATH` or of `NAME=PATH`; a path that is there may have a = in it."""
    name, equals, path = text.partition("=")
    return read_run(path, name) if equals and not Path(text).exists() else read_run(text)


def summary(run: RunLog, metric: str) -> str:
    """A run's last loss and its best metric, in one line."""
    parts = [run.name]
    if run.train:
        last = run.train[-1]
        parts.append(f"loss {last['loss']:.4g} at iteration {last['step']}")
    measured = [entry for entry in run.val if not math.isnan(entry.get(metric, math.nan))]
    if measured:
        best = max(measured, key=lambda entry: entry[metric])
        parts.append(f"best {metric} {best[metric]:.3f} at iteration {best['step']}")
    return ": ".join((parts[0], ", ".join(parts[1:])))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]WORK_DIR",
        help="working directory of a run, all its parts, or one scalars.json; NAME is for the legend",
    )
    parser.add_argument("--out", default="run.png", metavar="FILE.png", help="default: run.png")
    parser.add_argument(
        "--x", choices=["step", "time"], default="step", help="over iterations, or over hours"
    )
    parser.add_argument("--metric", default=METRIC, help=f"of validation (default: {METRIC})")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
