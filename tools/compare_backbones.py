"""Compare backbones under one detection protocol: a table of AP and cost, and plots.

Each NAME=SOURCE is trained and tested by the same config, seeds and data order. SOURCE is a birder
checkpoint (path, URL or birder://NAME), 'scratch', or a config whose model.backbone is compared.
Started again, the tool goes on where it was stopped.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, ahead of all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmengine import fileio

from ropevit_mmdet.analysis.run_figure import METRIC, plot_runs
from ropevit_mmdet.analysis.run_log import RunLog, read_run
from ropevit_mmdet.compare.candidates import Candidate, parse_candidates
from ropevit_mmdet.compare.cost import measure_costs
from ropevit_mmdet.compare.experiment import CONFIG_FILE, RESULT_FILE, Run, execute, result_of
from ropevit_mmdet.compare.figure import plot_cost
from ropevit_mmdet.compare.table import as_json, comma_separated, markdown, rows_of, two_evaluators
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.run.config import add_cfg_options, load_config


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        if args.execute:
            return execute(args.execute)
        protocol = load_config(args.protocol, args.cfg_options)
        options = {"test_evaluator": two_evaluators(protocol.test_evaluator)}
        for key, value in (args.cfg_options or {}).items():
            if key.partition(".")[0] != "test_evaluator":  # the two have it already
                options[key] = value
        candidates = parse_candidates(args.candidates, protocol)
        root = Path(args.work_dir or Path("work_dirs") / f"compare_{Path(args.protocol).stem}")
        runs = {candidate.name: seeded(args, candidate, options) for candidate in candidates}
        results = train_and_test(runs, root)
        folders = [root / of_candidate[0].folder for of_candidate in runs.values()]
        costs = dict(zip(runs, costs_of(folders, root), strict=True))
        rows = rows_of(results, costs)
        written = {"md": markdown(rows), "csv": comma_separated(rows), "json": as_json(rows)}
        for suffix, text in written.items():
            fileio.put(text.encode(), root / f"comparison.{suffix}")
        plot_cost(rows, root / "ap_over_latency.png")
        logs = [read_run(folder, name) for name, folder in zip(runs, folders, strict=True)]
        plot_runs(logs, root / "learning_curves.png", metric=validated(logs))
    print(written["md"])
    print(f"tables: {root / 'comparison.md'}, .csv, .json")
    print(f"plots:  {root / 'ap_over_latency.png'}, {root / 'learning_curves.png'}")


def seeded(args: argparse.Namespace, candidate: Candidate, options: dict) -> list[Run]:
    settings = options | candidate.options
    return [Run(candidate.name, args.protocol, settings, seed) for seed in range(args.seeds)]


def train_and_test(runs: dict[str, list[Run]], root: Path) -> dict[str, list[dict]]:
    """All results by candidate, seed by seed, so that early figures are of every backbone."""
    command = [sys.executable, __file__, "--execute"]
    results: dict[str, list[dict]] = {name: [] for name in runs}
    waiting = [run for of_one_seed in zip(*runs.values(), strict=True) for run in of_one_seed]
    seconds: list[float] = []
    for number, run in enumerate(waiting):
        left = sum(seconds) / max(len(seconds), 1) * (len(waiting) - number) / 60
        about = f", about {left:.0f} minutes left" if seconds else ""
        say(f"{number} of {len(waiting)} runs done{about}")
        start = time.monotonic()
        result = result_of(run, root, command, say)
        if time.monotonic() - start > 1:  # not one that was kept
            seconds.append(time.monotonic() - start)
        results[run.name].append(result)
        metric, value = next(iter(result["metrics"].items()))
        say(f"{run.folder}: {metric} {'none' if value is None else f'{100 * value:.1f} percent'}")
    return results


def costs_of(folders: list[Path], root: Path) -> list[dict[str, float]]:
    """Measured together, since they are compared; kept as long as the runs are the same."""
    kept = root / "costs.json"
    runs = {folder.name: digest_of(folder) for folder in folders}
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["runs"] == runs:
            return before["costs"]
    costs = measure_costs(folders, say)
    fileio.put(json.dumps({"runs": runs, "costs": costs}, indent=1).encode() + b"\n", kept)
    return costs


def digest_of(folder: Path) -> str:
    """Of a finished run: another run of the same name has other settings, weights or seconds."""
    files = (CONFIG_FILE, RESULT_FILE)
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()


def validated(logs: Sequence[RunLog]) -> str:
    """The metric of the learning curves: AP of boxes, or of masks where those have none."""
    found = (key for log in logs for entry in log.val for key in entry if key.endswith("_mAP"))
    return next(found, METRIC)


def say(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    if "--execute" in (sys.argv[1:] if argv is None else argv):  # a run in a process of its own
        parser.add_argument("--execute", type=Path)
        return parser.parse_args(argv)
    parser.add_argument("protocol", help="config of a detector with a RoPEViT: data, heads, recipe")
    parser.add_argument("candidates", nargs="+", metavar="NAME=SOURCE", help="backbones to compare")
    parser.add_argument("--work-dir", help="folder (default: work_dirs/compare_<config>)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each backbone (default: 2)")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    args.execute = None
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds} must be 1 or more")
    return args


if __name__ == "__main__":
    main()
