"""Runs that are compared with each other: one directory each, its result kept there, seeds averaged.

A run is a config, settings that change it, and a seed. It trains and is tested in a process of its
own; killed, it continues from its last checkpoint; finished, it is not run again. The process ends
with the one that started it, however that ends: it would continue training into the directory.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mmengine import fileio
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.visualization.run_log import elapsed_seconds, log_files, read_run
from ropevit_mmdet.weights.lookup import sha256_of

RESULT_FILE = "result.json"
CONFIG_FILE = "run.py"
# Ends of the names of CocoMetric's figures; for a test that found nothing it gives none of them.
AP_ENDS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


class Run(NamedTuple):
    """One training and test; `options` are as of `--cfg-options`, without `trains` only a test."""

    name: str
    config: str
    options: dict[str, Any]
    seed: int = 0
    trains: bool = True

    @property
    def directory(self) -> str:
        return f"{self.name}-seed{self.seed}"


class RunFailed(ValueError):
    """The process of a run ended without a result; names its log."""


def result_of(run: Run, root: Path, command: Sequence[str], say: Callable[[str], None]) -> dict:
    """The result of a run, from its directory in `root` or by running it.

    `command` starts the process that calls `execute`; the run's directory is appended to it.

    Raises:
        RunFailed: the run failed.
        ValueError: the directory holds a run of other settings, or of weights that were in the same
            files then.
    """
    directory = root / run.directory
    config = load_config(run.config, run.options)
    config.randomness = {**config.get("randomness", {}), "seed": run.seed}
    if not run.trains:  # mmengine builds neither loop nor optimizer then
        config.train_cfg = config.train_dataloader = config.optim_wrapper = None
        config.param_scheduler = None
    config.pop("work_dir")  # the directory itself, by whichever path
    files = dict.fromkeys(weights_files(config.to_dict()))
    settings = "".join(f"# sha256 {sha256_of(Path(file).expanduser())}: {file}\n" for file in files)
    settings += config.pretty_text
    kept, place = directory / RESULT_FILE, directory / CONFIG_FILE
    if place.is_file() and place.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{directory} holds a run of other settings or weights: move it away")
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    fileio.put(settings.encode(), str(place))
    say(f"{run.directory}: running, log in {directory / 'log.txt'}")
    with (directory / "log.txt").open("a", encoding="utf-8") as log:
        status = _run([*command, str(directory)], log)
    if status or not kept.is_file():
        raise RunFailed(f"{run.directory} failed, see {directory / 'log.txt'}")
    return json.loads(kept.read_text(encoding="utf-8"))


def execute(directory: Path) -> None:
    """Trains, or continues training, the run that `result_of` laid into a directory, and tests it.

    For a process that `result_of` started: it ends when its standard input does.
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    settings = Config.fromfile(directory / CONFIG_FILE).to_dict()
    config = Config(settings | {"work_dir": str(directory)})  # nameless, or mmengine overwrites it
    newest = latest_checkpoint(directory)
    if newest is not None:
        config.resume, config.load_from = True, str(newest)
    with lock_work_dir(directory):
        runner = Runner.from_cfg(config)
        if config.train_cfg is not None:
            runner.train()
        metrics = all_metrics(runner.test(), config.test_evaluator)
    result = {
        "metrics": metrics,
        "iterations": runner.iter,
        "train_seconds": training_seconds(directory),
        "parameters": sum(p.numel() for p in runner.model.parameters()),
    }
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    fileio.put(text.encode(), directory / RESULT_FILE)


def training_seconds(directory: Path) -> float:
    """Seconds that all parts of a run spent on iterations, by the times in their logs."""
    if not log_files(directory):
        return 0.0  # it was tested only, or ended before the first line
    return max(elapsed_seconds(read_run(directory)), default=0.0)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and half the distance between the largest and the smallest."""
    return statistics.fmean(values), (max(values) - min(values)) / 2


def all_metrics(found: Mapping[str, float], evaluators: Any) -> dict[str, float | None]:
    """All figures of a test: 0 where nothing was found, None where there was nothing to find."""
    zeros = {}
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        wanted = evaluator.get("metric", "bbox")
        for metric in [wanted] if isinstance(wanted, str) else wanted:
            prefix = evaluator.get("prefix") or "coco"
            zeros |= {f"{prefix}/{metric}_{end}": 0.0 for end in AP_ENDS}
    # COCO says -1, and NaN of a class, where the images have no such object.
    return zeros | {key: value if value >= 0 else None for key, value in found.items()}


def weights_files(settings: Any) -> Iterator[str]:
    """The local files of weights that a config's settings name."""
    if isinstance(settings, (list, tuple)):
        for value in settings:
            yield from weights_files(value)
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            if key in ("checkpoint", "load_from") and isinstance(value, str):
                if Path(value).expanduser().is_file():
                    yield value
            else:
                yield from weights_files(value)


def _run(command: Sequence[str], log: TextIO) -> int:
    """The exit status of a program whose standard input lasts as long as this process."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
    ) as program:
        try:
            return program.wait()
        except BaseException:  # an interrupt
            program.kill()
            raise


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    sys.stderr.write("ended: the program that started this run is gone\n")
    os._exit(
        1
    )  # at once: the next one wants the directory, and files are written whole or not at all
