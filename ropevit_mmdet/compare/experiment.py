"""Runs that are compared with each other: one folder each, its result kept there, seeds averaged.

A run is a config, settings that change it, and a seed. It trains and is tested in a process of its
own; killed, it goes on from its last checkpoint; finished, it is not run again.
"""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine import fileio
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet.analysis.run_log import elapsed_seconds, log_files, read_run
from ropevit_mmdet.run.config import load_config
from ropevit_mmdet.run.resume import latest_checkpoint
from ropevit_mmdet.run.work_dir_lock import lock_work_dir

RESULT_FILE = "result.json"
CONFIG_FILE = "run.py"


class Run(NamedTuple):
    """One training and test; `options` are as of `--cfg-options`, without `trains` only a test."""

    name: str
    config: str
    options: dict[str, Any]
    seed: int = 0
    trains: bool = True

    @property
    def folder(self) -> str:
        return f"{self.name}-seed{self.seed}"


def result_of(run: Run, root: Path, command: Sequence[str], say: Callable[[str], None]) -> dict:
    """The result of a run, from its folder in `root` or by running it.

    `command` starts the process that calls `execute`; the run's folder is appended to it.

    Raises:
        RuntimeError: the run failed; names its log. Or the folder holds one of other settings.
    """
    folder = root / run.folder
    config = load_config(run.config, run.options, work_dir=str(folder))
    config.randomness = {**config.get("randomness", {}), "seed": run.seed}
    if not run.trains:  # mmengine builds neither loop nor optimizer then
        config.train_cfg = config.train_dataloader = config.optim_wrapper = None
        config.param_scheduler = None
    kept, settings = folder / RESULT_FILE, folder / CONFIG_FILE
    if settings.is_file() and settings.read_text(encoding="utf-8") != config.pretty_text:
        raise RuntimeError(f"{folder} holds a run of other settings: move it away")
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    config.dump(settings)
    say(f"{run.folder}: running, log in {folder / 'log.txt'}")
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run([*command, str(folder)], stdout=log, stderr=subprocess.STDOUT)
    if done.returncode or not kept.is_file():
        raise RuntimeError(f"{run.folder} failed, see {folder / 'log.txt'}")
    return json.loads(kept.read_text(encoding="utf-8"))


def execute(folder: Path) -> None:
    """Trains, or goes on training, the run that `result_of` laid into a folder, and tests it."""
    config = Config.fromfile(folder / CONFIG_FILE)
    newest = latest_checkpoint(folder)
    if newest is not None:
        config.resume, config.load_from = True, str(newest)
    with lock_work_dir(folder):
        runner = Runner.from_cfg(config)
        if config.train_cfg is not None:
            runner.train()
        metrics = {key: float(value) for key, value in runner.test().items()}
    result = {
        "metrics": metrics,
        "iterations": runner.iter,
        "train_seconds": training_seconds(folder),
        "parameters": sum(p.numel() for p in runner.model.parameters()),
    }
    fileio.put(json.dumps(result, indent=1).encode() + b"\n", folder / RESULT_FILE)


def training_seconds(folder: Path) -> float:
    """Seconds that all parts of a run spent on iterations, by the times in their logs."""
    if not log_files(folder):
        return 0.0  # it was tested only, or ended before the first line
    return max(elapsed_seconds(read_run(folder)), default=0.0)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and half the distance between the largest and the smallest."""
    return statistics.fmean(values), (max(values) - min(values)) / 2
