"""Draw runs over each other: losses, learning rate and a metric over iterations or hours."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.visualization.figure_file import plain, save_figure
from ropevit_mmdet.visualization.palette import line_style
from ropevit_mmdet.visualization.run_log import RunLog, elapsed_seconds

METRIC = "coco/bbox_mAP"
_COLUMNS = 3
_X_LABELS = {"step": "iterations", "time": "hours of training"}


def plot_runs(
    runs: Sequence[RunLog],
    path: str | os.PathLike[str],
    *,
    metric: str = METRIC,
    x: str = "step",
) -> None:
    """Write a PNG with a panel for each loss, the learning rate and the metric, a line per run.

    `x` is "step" or "time". A panel is there if one run has its scalar; without any validation, or
    one that found an object, there is none for the metric. Raises ValueError for a metric that
    no validation has but for others, an `x` that is not known, runs of one name, and nothing at all
    to draw.
    """
    if x not in _X_LABELS:
        raise ValueError(f"x must be one of {', '.join(_X_LABELS)}, got {x!r}")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not runs or twice is not None:
        raise ValueError(f"two runs are called {twice!r}: name them" if runs else "no runs to plot")
    panels = [("train", key) for key in _train_scalars(runs)]
    if _measured(runs, metric):
        panels.append(("val", metric))
    if not panels:
        raise ValueError(
            "nothing to plot yet: no loss was logged, and no validation found anything"
        )

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, (part, key) in zip(axes, panels):
        for index, run in enumerate(runs):
            _draw(axis, run, part, key, x, line_style(index))
        axis.set_title(plain(_title(key)), fontsize=10)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel(_X_LABELS[x], fontsize=10)
    handles = {line.get_label(): line for axis in axes[::-1] for line in axis.get_lines()}
    _legend(figure, [handles[plain(name)] for name in names if plain(name) in handles])
    save_figure(figure, path)


def _train_scalars(runs: Sequence[RunLog]) -> list[str]:
    """The losses of all runs, the total first, then the learning rate."""
    logged = dict.fromkeys(key for run in runs for entry in run.train for key in entry)
    losses = [key for key in logged if "loss" in key]
    rates = [key for key in ("base_lr", "lr") if key in logged][:1]  # the schedule, undecayed
    return sorted(losses, key=lambda key: key != "loss") + rates


def _measured(runs: Sequence[RunLog], metric: str) -> bool:
    """Whether a validation has the metric; mmdet's give none at all where nothing was found."""
    known = dict.fromkeys(key for run in runs for entry in run.val for key in entry)
    metrics = [key for key in known if key not in ("step", "time", "data_time")]
    if metrics and metric not in metrics:
        raise ValueError(f"no run has a metric {metric!r}; there are: {', '.join(metrics)}")
    return bool(metrics)


def _draw(
    axis: Axes, run: RunLog, part: str, key: str, x: str, style: dict[str, str | float]
) -> None:
    """One scalar of one run, if the run has it."""
    entries = [entry for entry in getattr(run, part) if key in entry]
    if not entries:
        return
    places = np.array([entry["step"] for entry in entries], float)
    if x == "time":
        steps = [0.0, *(entry["step"] for entry in run.train)]
        places = np.interp(places, steps, [0.0, *elapsed_seconds(run)]) / 3600
    marker = "o" if part == "val" or len(entries) <= 3 else None
    values = [entry[key] for entry in entries]
    axis.plot(
        places, values, **style, marker=marker, markersize=3, linewidth=1.3, label=plain(run.name)
    )


def _title(key: str) -> str:
    words = {"base_lr": "learning rate", "lr": "learning rate", "loss": "loss (sum)"}
    return words.get(key, key)


def _legend(figure: Figure, handles: Sequence) -> None:
    """One legend above all panels, in as many columns as the longest name leaves room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    characters = 13 * figure.get_figwidth()  # at 9 points
    columns = max(1, min(len(handles), int(characters / (longest + 7))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=9)
