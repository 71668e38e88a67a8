"""Compare backbones under one detection protocol: a table of AP and cost, and plots.

Each NAME=SOURCE is trained and tested by the same config, seeds and data order. SOURCE is a birder
checkpoint (path, URL or birder://NAME), 'scratch', or a config whose model.backbone is compared.
Started again, the tool continues where it was stopped.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmengine import fileio

from ropevit_mmdet.apis.compare.candidates import Candidate, parse_candidates
from ropevit_mmdet.apis.compare.cost import check_weights, measure_costs
from ropevit_mmdet.apis.compare.experiment import (
    CONFIG_FILE,
    RESULT_FILE,
    Run,
    RunFailed,
    execute,
    result_of,
)
from ropevit_mmdet.apis.compare.figure import plot_cost
from ropevit_mmdet.apis.compare.table import (
    as_json,
    comma_separated,
    markdown,
    rows_of,
    two_evaluators,
)
from ropevit_mmdet.compat.primitives import bound_caches
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.run_curves import METRIC, plot_runs
from ropevit_mmdet.visualization.run_log import RunLog, read_run

COSTS_FILE = "costs.json"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    bound_caches(1024)  # of this process and its runs: some backbones need more than ours
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
        directories = {name: root / of_seeds[0].directory for name, of_seeds in runs.items()}
        if kept_costs(directories.values(), root) is None:
            check_weights(directories.values())
        results, failed = train_and_test(runs, root)
        if not results:
            raise next(iter(failed.values()))
        directories = {name: directories[name] for name in results}
        costs = dict(zip(directories, costs_of(directories.values(), root), strict=True))
        rows = rows_of(results, costs)
        without = "".join(f"\nWithout {name}: {error}\n" for name, error in failed.items())
        written = {"md": markdown(rows) + without}
        written |= {"csv": comma_separated(rows), "json": as_json(rows)}
        for suffix, text in written.items():
            fileio.put(text.encode(), root / f"comparison.{suffix}")
        plot_cost(rows, root / "ap_over_latency.png")
        logs = [read_run(directory, name) for name, directory in directories.items()]
        plot_runs(logs, root / "learning_curves.png", metric=validated(logs))
    print(written["md"])
    print(f"tables: {root / 'comparison.md'}, .csv, .json")
    print(f"plots:  {root / 'ap_over_latency.png'}, {root / 'learning_curves.png'}")
    if failed:
        sys.exit(f"error: {len(failed)} of {len(runs)} backbones failed: {', '.join(failed)}")


def seeded(args: argparse.Namespace, candidate: Candidate, options: dict) -> list[Run]:
    settings = options | candidate.options
    return [Run(candidate.name, args.protocol, settings, seed) for seed in range(args.seeds)]


def train_and_test(
    runs: dict[str, list[Run]], root: Path
) -> tuple[dict[str, list[dict]], dict[str, RunFailed]]:
    """All results by candidate, seed by seed, so that early figures are of every backbone.

    One of which a run fails has no results, but that error, and the others continue without it.
    """
    command = [sys.executable, __file__, "--execute"]
    results: dict[str, list[dict]] = {name: [] for name in runs}
    failed: dict[str, RunFailed] = {}
    waiting = [run for of_one_seed in zip(*runs.values(), strict=True) for run in of_one_seed]
    seconds: list[float] = []
    for number, run in enumerate(waiting):
        if run.name in failed:
            continue
        left = sum(seconds) / max(len(seconds), 1) * (len(waiting) - number) / 60
        about = f", about {left:.0f} minutes left" if seconds else ""
        say(f"{number} of {len(waiting)} runs done{about}")
        start = time.monotonic()
        try:
            result = result_of(run, root, command, say)
        except RunFailed as error:
            say(str(error))
            failed[run.name] = error
            del results[run.name]
            continue
        if time.monotonic() - start > 1:  # not one that was kept
            seconds.append(time.monotonic() - start)
        results[run.name].append(result)
        metric, value = next(iter(result["metrics"].items()))
        say(
            f"{run.directory}: {metric} {'none' if value is None else f'{100 * value:.1f} percent'}"
        )
    return results, failed


def costs_of(directories: Collection[Path], root: Path) -> list[dict[str, float]]:
    """Measured together, since they are compared; kept as long as the runs are the same."""
    costs = kept_costs(directories, root)
    if costs is None:
        costs = measure_costs(directories, say)
        runs = {directory.name: digest_of(directory) for directory in directories}
        text = json.dumps({"runs": runs, "costs": costs}, indent=1) + "\n"
        fileio.put(text.encode(), root / COSTS_FILE)
    return costs


def kept_costs(directories: Collection[Path], root: Path) -> list[dict[str, float]] | None:
    """Those of an earlier call, if they are of precisely these runs."""
    kept = root / COSTS_FILE
    if not kept.is_file():
        return None
    before = json.loads(kept.read_text(encoding="utf-8"))
    return (
        before["costs"] if before["runs"] == {f.name: digest_of(f) for f in directories} else None
    )


def digest_of(directory: Path) -> str | None:
    """Of a finished run: another run of the same name has other settings, weights or seconds."""
    if not (directory / RESULT_FILE).is_file():
        return None
    files = (CONFIG_FILE, RESULT_FILE)
    return hashlib.sha256(b"".join((directory / name).read_bytes() for name in files)).hexdigest()


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
    parser.add_argument("--work-dir", help="directory (default: work_dirs/compare_<config>)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each backbone (default: 2)")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    args.execute = None
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds} must be 1 or more")
    return args


if __name__ == "__main__":
    main()
