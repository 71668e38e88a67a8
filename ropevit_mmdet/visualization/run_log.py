"""Reads the log of a run: the scalars of all its parts, each step once.

mmengine's LocalVisBackend writes `<work_dir>/<start time>/vis_data/scalars.json`, one JSON object
per line, and starts another such directory when a run is resumed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ropevit_mmdet.errors import UserError

# Relative to a work_dir, to the directory of one start, and to vis_data.
_PATTERNS = ("*/vis_data/scalars.json", "vis_data/scalars.json", "scalars.json")

Entries = list[dict[str, float]]


@dataclass(frozen=True)
class RunLog:
    """The scalars of a run in order of "step", the number of finished iterations.

    `train` has losses, learning rates and "time" (seconds per iteration, a mean over the last
    ones); `val` has the metrics.
    """

    name: str
    train: Entries
    val: Entries

    @property
    def seconds(self) -> float:
        """Spent on iterations, without pauses."""
        starts = [0, *(entry["step"] for entry in self.train)]
        pairs = zip(self.train, starts)
        return sum((entry["time"] * (entry["step"] - start) for entry, start in pairs), 0.0)


def read_run(path: str | os.PathLike[str], name: str | None = None) -> RunLog:
    """Reads the log of a run; where a resumed part repeats steps, the later part counts.

    Args:
        path: a working directory, the directory of one start in it, or a file `scalars.json`.
        name: by default the name of the working directory.

    Raises:
        UserError: the path has no log, or the log has no scalars.
    """
    files = log_files(Path(path))
    train: Entries = []
    val: Entries = []
    for file in files:
        try:
            more_train, more_val = _read_part(file)
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{file} is not the log of a run: {error}") from error
        start = more_train[0]["step"] if more_train else float("inf")
        train = [entry for entry in train if entry["step"] < start] + more_train
        val = [entry for entry in val if entry["step"] < start] + more_val
    if not train and not val:
        raise UserError(
            f"{path} has no log of a run ({_PATTERNS[0]}); results of a test need --config CONFIG"
        )
    parents = files[-1].resolve().parents
    in_work_dir = parents[0].name == "vis_data"
    return RunLog(name or (parents[2].name if in_work_dir else files[-1].stem), train, val)


def log_files(path: Path) -> list[Path]:
    """The logs of all parts of a run in order of their start."""
    if path.is_file():
        return [path]
    matches = (sorted(path.glob(pattern)) for pattern in _PATTERNS)
    return next((files for files in matches if files), [])


def _read_part(file: Path) -> tuple[Entries, Entries]:
    """The entries of training and validation in one file, without a truncated last line."""
    train: Entries = []
    val: Entries = []
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
        values = json.loads(line)
        entry = {key: one for key, one in values.items() if isinstance(one, (int, float))}
        entry["step"] = int(entry["step"])
        if "loss" in entry:
            train.append(entry)
        else:
            # mmengine counts validations in epochs by default, and those of an IterBasedTrainLoop
            # as 0: their step is then smaller than that of the training.
            entry["step"] = max(entry["step"], train[-1]["step"] if train else 0)
            val.append(entry)
    return train, val
