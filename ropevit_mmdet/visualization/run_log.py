"""The log of a run as numbers: the scalars of all its parts, each step once.

mmengine's LocalVisBackend writes `<work_dir>/<time of start>/vis_data/scalars.json`, a JSON object
a line, and begins another such directory when a run is resumed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where the logs are, seen from a work_dir, from the directory of one start, or from vis_data.
_PLACES = ("*/vis_data/scalars.json", "vis_data/scalars.json", "scalars.json")


@dataclass(frozen=True)
class RunLog:
    """A run's scalars, in order of "step", the number of iterations done (every entry has it).

    `train` has losses, learning rates and "time" (seconds of an iteration, a mean over the last
    ones), `val` has the metrics.
    """

    name: str
    train: list[dict[str, float]]
    val: list[dict[str, float]]


def read_run(path: str | os.PathLike[str], name: str | None = None) -> RunLog:
    """The log of a working directory, of one start within it, or of a file `scalars.json`.

    Where a resumed part repeats steps, or begins again, the later part counts. `name` defaults to
    that of the working directory. Raises ValueError if there is no log, or none of a training.
    """
    path = Path(path)
    files = log_files(path)
    if not files:
        raise ValueError(f"{path} holds no log of a run: no {_PLACES[0]} in it")
    train: dict[int, dict[str, float]] = {}
    val: dict[int, dict[str, float]] = {}
    for file in files:
        more_train, more_val = _read_part(file)
        start = min(more_train, default=float("inf"))
        for known, more in ((train, more_train), (val, more_val)):
            for step in [step for step in known if step >= start]:
                del known[step]  # what the resumed part did again, or went another way from
            known.update(more)
    if not train and not val:
        raise ValueError(f"the log of {path} is empty: nothing was logged yet")
    return RunLog(name or _run_name(files[-1]), _in_order(train), _in_order(val))


def log_files(path: Path) -> list[Path]:
    """The logs of all parts of a run, in order of their start; none is []."""
    if path.is_file():
        return [path]
    found = (sorted(path.glob(place)) for place in _PLACES)
    return next((files for files in found if files), [])


def elapsed_seconds(run: RunLog) -> list[float]:
    """Seconds spent on iterations up to each entry of `train`, over all parts, without pauses.

    Raises ValueError for a log without iteration times.
    """
    total, before, elapsed = 0.0, 0.0, []
    for entry in run.train:
        if "time" not in entry:
            raise ValueError(f"the log of {run.name} has no iteration times")
        total += entry["time"] * (entry["step"] - before)
        before = entry["step"]
        elapsed.append(total)
    return elapsed


def _read_part(file: Path) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    """Entries of training and of validation by step, from one file."""
    train: dict[int, dict[str, float]] = {}
    val: dict[int, dict[str, float]] = {}
    last = 0
    for entry in _entries(file):
        if "loss" in entry:
            last = entry["step"]
            train[last] = entry
        else:
            # mmengine counts validations in epochs by default, and those of an IterBasedTrainLoop
            # as 0: such a step is behind that of the training. No iteration is.
            entry["step"] = max(entry["step"], last)
            val[entry["step"]] = entry
    return train, val


def _entries(file: Path) -> list[dict[str, float]]:
    """The numbers of each line; a last line that a kill truncated does not count, if it is one."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no run's log: it is no text") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and (number > 1 or line.startswith("{")):
                break
            raise ValueError(f"{file}, line {number}: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"{file}, line {number}: no scalars with a step, is it a run's log?")
        entries.append({k: v for k, v in entry.items() if isinstance(v, (int, float))})
    return entries


def _in_order(entries: dict[int, dict[str, float]]) -> list[dict[str, float]]:
    return [entries[step] for step in sorted(entries)]


def _run_name(file: Path) -> str:
    """`first` for `runs/first/20260101_000000/vis_data/scalars.json`."""
    parents = file.resolve().parents
    return parents[2].name if file.parent.name == "vis_data" else file.stem
