"""Figures of evaluation results: the confusion matrix and precision over recall."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.visualization._figure_file import line_style, plain, shortened

_MAX_CLASSES = 25  # of a confusion matrix
_MAX_NAMED = 10  # curves with a color and a name
_NAME_LENGTH = 24  # characters


def plot_confusion_matrix(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Plots a confusion matrix: counts as numbers, the share of the row as color.

    Of more than 30 classes, those other than the 25 with the most errors are summed up.

    Args:
        matrix: counts [classes + 1, classes + 1], ground truth in rows, background last.
        names: class names.
        title: the title of the figure.
    """
    matrix, names = _collapsed(matrix, names)
    labels = [*(plain(shortened(name, _NAME_LENGTH)) for name in names), "background"]
    size = len(matrix)
    side = max(4.5, 0.55 * size + 2)  # inches
    figure = Figure(figsize=(side + 2, side + 1), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    tilted: dict[str, Any] = dict(rotation=60, ha="right", rotation_mode="anchor")
    axis.set_xticks(range(size), labels, fontsize=9, **tilted)
    axis.set_yticks(range(size), labels, fontsize=9)
    axis.set(xlabel="prediction", ylabel="ground truth")
    axis.set_title(title, fontsize=10)
    for (row, column), count in np.ndenumerate(matrix):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = "" if row == column == size - 1 else count
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axis.axhline(size - 1.5, color="gray", linewidth=0.8)  # separates the background
    axis.axvline(size - 1.5, color="gray", linewidth=0.8)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the row")
    return figure


def plot_precision_recall(
    names: Sequence[str], recall: np.ndarray, precision: np.ndarray, ious: Sequence[float]
) -> Figure:
    """Plots a panel per IoU: a curve per class and their mean, AP in the legend.

    Of more than ten classes, the ten with the lowest AP have a color and a name; the others are
    gray. Classes without objects are skipped.

    Args:
        names: class names.
        recall: recall [R] in 0..1.
        precision: precision [IoUs, R, classes]; NaN for a class without objects.
        ious: the IoU thresholds.
    """
    figure = Figure(figsize=(6.2 * len(ious), 5.2), layout="constrained")
    axes = figure.subplots(1, len(ious), squeeze=False)[0]
    for axis, iou, of_iou in zip(axes, ious, precision, strict=True):
        _draw_curves(axis, names, recall, of_iou)
        axis.set_title(f"IoU {iou}", fontsize=10)
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left", title="AP", title_fontsize=8)
    return figure


def _draw_curves(
    axis: Axes, names: Sequence[str], recall: np.ndarray, precision: np.ndarray
) -> None:
    known = np.flatnonzero(~np.isnan(precision).any(axis=0))
    average = precision.mean(axis=0)
    # A few classes keep their colors in all panels; of many, each panel names its lowest.
    few = len(known) <= _MAX_NAMED
    named = known if few else known[np.argsort(average[known], kind="stable")][:_MAX_NAMED]
    axis.plot(recall, precision[:, np.setdiff1d(known, named)], color="0.8", linewidth=0.7)
    for index, label in enumerate(named):
        text = f"{plain(shortened(names[label], _NAME_LENGTH))} {average[label]:.3f}"
        style = line_style(int(label) if few else index)
        axis.plot(recall, precision[:, label], **style, linewidth=1.3, label=text)
    if known.size > 1:
        text = f"mean of {len(known)} classes {average[known].mean():.3f}"
        mean = precision[:, known].mean(axis=1)
        axis.plot(recall, mean, color="black", linewidth=2.5, label=text)
    elif not known.size:
        axis.plot([], [], " ", label="no objects")


def _collapsed(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, Sequence[str]]:
    """A confusion matrix of few classes, and their names, the last one "other classes"."""
    classes, most = len(names), _MAX_CLASSES
    if classes <= most + 5:
        return matrix, names
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-errors[:classes], kind="stable")[:most])
    index = np.full(classes + 1, most)
    index[shown], index[classes] = np.arange(most), most + 1
    collapsed = np.zeros((most + 2, most + 2), matrix.dtype)
    np.add.at(collapsed, (index[:, None], index), matrix)
    return collapsed, [*(names[label] for label in shown), "other classes"]
