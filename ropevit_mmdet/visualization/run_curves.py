"""Figure of runs: losses, learning rate and a metric over iterations, a line per run."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization._figure_file import line_style, plain
from ropevit_mmdet.visualization.run_log import RunLog

_COLUMNS = 3
_TITLES = {"base_lr": "learning rate", "lr": "learning rate", "loss": "loss (sum)"}


def plot_runs(runs: Sequence[RunLog], *, metric: str = "coco/bbox_mAP") -> Figure:
    """Plots a panel per loss, for the learning rate and for the metric of validation.

    Raises:
        UserError: two runs of one name, a metric that no validation has, or no scalars at all.
    """
    panels = _panels(runs, metric)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, (part, key) in zip(axes, panels, strict=False):
        for index, run in enumerate(runs):
            _draw(axis, run, part, key, line_style(index))
        axis.set_title(plain(_TITLES.get(key, key)), fontsize=10)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("iterations", fontsize=10)
    _add_legend(figure, [plain(run.name) for run in runs])
    return figure


def _panels(runs: Sequence[RunLog], metric: str) -> list[tuple[str, str]]:
    """The total loss, its parts, the learning rate without layer decay, and the metric."""
    names = [run.name for run in runs]
    logged = dict.fromkeys(key for run in runs for entry in run.train for key in entry)
    measured = dict.fromkeys(key for run in runs for entry in run.val for key in entry)
    metrics = [key for key in measured if key not in ("step", "time", "data_time")]
    losses = sorted((key for key in logged if "loss" in key), key=lambda key: key != "loss")
    rates = [key for key in ("base_lr", "lr") if key in logged][:1]
    panels = [("train", key) for key in losses + rates] + [("val", metric)] * (metric in metrics)
    finding = None
    if len(set(names)) < len(names):
        finding = f"two runs have the same name: {', '.join(names)}; NAME=PATH sets it"
    elif metrics and metric not in metrics:  # without detections there are no metrics
        finding = f"no run has a metric {metric!r}; available: {', '.join(metrics)}"
    elif not panels:
        finding = "nothing to plot yet: no loss and no metric was logged"
    if finding:
        raise UserError(finding)
    return panels


def _draw(axis: Axes, run: RunLog, part: str, key: str, style: dict[str, Any]) -> None:
    """Draws one scalar of one run, if the run has it."""
    points = [(entry["step"], entry[key]) for entry in getattr(run, part) if key in entry]
    if points:
        marker = "o" if part == "val" or len(points) <= 3 else None
        style = dict(style, marker=marker, markersize=3, linewidth=1.3, label=plain(run.name))
        axis.plot(*zip(*points), **style)


def _add_legend(figure: Figure, names: Sequence[str]) -> None:
    """Adds one legend above all panels, with as many columns as fit the longest name."""
    handles = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    characters = 13 * figure.get_figwidth()  # at 9 points
    columns = max(1, min(len(names), int(characters / (max(map(len, names)) + 7))))
    shown = [handles[name] for name in names if name in handles]
    figure.legend(handles=shown, loc="outside upper center", ncols=columns, fontsize=9)
