"""Runs of a comparison: one directory each, trained and tested in a process, results kept.

An interrupted run continues from its last checkpoint; a finished one is not repeated.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.fast_coco_metric import zero_figures
from ropevit_mmdet.visualization.run_log import log_files, read_run
from ropevit_mmdet.weights.hub import sha256_of

RESULT_FILE = "result.json"
CONFIG_FILE = "run.py"
LOG_FILE = "log.txt"
_EXECUTE = (
    "import sys, ropevit_mmdet; from ropevit_mmdet.apis.compare.experiment import execute; "
    "execute(sys.argv[1])"
)


class Run(NamedTuple):
    """A training and test; `options` override settings of the config, `trains=False` only tests."""

    name: str
    config: str | Config
    options: Mapping[str, Any] = {}
    seed: int = 0
    trains: bool = True

    @property
    def directory(self) -> str:
        return f"{self.name}-seed{self.seed}"


def result_of(run: Run, root: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Returns the result of a run, from its directory in `root` or by running it."""
    check_directories([run], root)
    directory = root / run.directory
    result, log_file = directory / RESULT_FILE, directory / LOG_FILE
    if not result.is_file():
        with atomic_file(directory / CONFIG_FILE) as file:
            file.write(_settings(run).encode())
        log(f"{run.directory}: running, log in {log_file}")
        if _start(directory) or not result.is_file():
            raise UserError(f"{run.directory} failed, see {log_file}")
    return json.loads(result.read_text(encoding="utf-8"))


def check_directories(runs: Iterable[Run], root: Path) -> None:
    """Checks that earlier runs in the directories have the same settings and a checkpoint."""
    findings = []
    for run in runs:
        directory = root / run.directory
        kept = directory / CONFIG_FILE
        if kept.is_file() and kept.read_text(encoding="utf-8") != _settings(run):
            findings.append(f"{directory} has a run of other settings or weights: move it away")
        finished = run.trains and (directory / RESULT_FILE).is_file()
        if finished and latest_checkpoint(directory) is None:
            findings.append(f"{directory} has a finished run without its checkpoint: move it away")
    if findings:
        raise UserError("; ".join(findings))


def execute(directory: str | os.PathLike[str]) -> None:
    """Trains and tests the run in a directory; ends when the standard input does."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    directory = Path(directory)
    settings = Config.fromfile(directory / CONFIG_FILE).to_dict()
    config = Config(settings | {"work_dir": str(directory)})  # without filename: mmengine copies it
    newest = latest_checkpoint(directory)
    if newest is not None:
        config.resume, config.load_from = True, str(newest)
    with lock_work_dir(directory):
        runner = Runner.from_cfg(config)
        if config.train_cfg is not None:
            runner.train()
        metrics = zero_figures(runner.test_loop.evaluator.metrics) | runner.test()
    result = {
        # COCO returns -1, and NaN per class, where the images have no such object.
        "metrics": {key: value if value >= 0 else None for key, value in metrics.items()},
        "iterations": runner.iter,
        "train_seconds": read_run(directory).seconds if log_files(directory) else 0.0,
    }
    with atomic_file(directory / RESULT_FILE) as file:
        file.write(json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and half the distance between the largest and the smallest."""
    return statistics.fmean(values), (max(values) - min(values)) / 2


def _settings(run: Run) -> str:
    """The text of a run's config, headed by the digests of its files of weights."""
    config = load_config(run.config, dict(run.options))
    config.randomness = {**config.get("randomness", {}), "seed": run.seed}
    if not run.trains:  # mmengine builds neither loop nor optimizer then
        config.train_cfg = config.train_dataloader = config.optim_wrapper = None
        config.param_scheduler = None
    config.pop("work_dir")  # it is the directory of the run
    text = config.pretty_text
    for file in sorted(set(re.findall(r"\b(?:checkpoint|load_from)\s*=\s*'([^']+)'", text))):
        if (path := Path(file).expanduser()).is_file():
            text = f"# sha256 {sha256_of(path)}: {file}\n{text}"
    return text


def _start(directory: Path) -> int:
    """Runs `execute` with standard input open as long as this process; returns its status."""
    command = [sys.executable, "-c", _EXECUTE, str(directory)]
    with (directory / LOG_FILE).open("ab") as log:
        streams: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        with subprocess.Popen(command, **streams) as program:
            return program.wait()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    sys.stderr.write("ended: the program that started this run has ended\n")
    os._exit(1)  # at once, for the next run in this directory; files are written atomically
