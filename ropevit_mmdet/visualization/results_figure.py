"""Draw a confusion matrix and curves of precision over recall, for few classes and for many."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.evaluation.results import IOUS, PrecisionRecall
from ropevit_mmdet.visualization.figure_file import plain, save_figure, shortened
from ropevit_mmdet.visualization.palette import line_style

_COUNTS_UP_TO = 30  # classes; cells of more are too small for a number
_NAMED_CURVES = 10  # more lines cannot be told apart
_NAME_LENGTH = 40  # characters; longer names are shortened


def plot_confusion_matrix(
    matrix: np.ndarray, names: Sequence[str], path: str | os.PathLike[str], title: str
) -> None:
    """Write a PNG: counts as numbers, the share of the row as color.

    `matrix` [classes + 1, classes + 1] is `results.confusion_matrix`'s, ground truth in rows.
    """
    size = len(matrix)
    labels = [*(plain(shortened(name, _NAME_LENGTH)) for name in names), "background"]
    font = 9 if size <= _COUNTS_UP_TO else 6
    side = max(4.5, (0.55 if size <= _COUNTS_UP_TO else 0.17) * size + 2)
    room = max(0, max(map(len, labels)) - 12) * 0.6 * font / 72  # inches, of longer names
    figure = Figure(figsize=(side + 1 + room, side + room), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(size), labels, rotation=60, ha="right", rotation_mode="anchor",
                    fontsize=font)  # fmt: skip
    axis.set_yticks(range(size), labels, fontsize=font)
    axis.set_xlabel("found as")
    axis.set_ylabel("ground truth")
    axis.set_title(title, fontsize=10)
    if size <= _COUNTS_UP_TO:
        for (row, column), count in np.ndenumerate(matrix):
            ink = "white" if shares[row, column] > 0.5 else "black"
            text = "" if row == column == size - 1 else str(count)
            axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axis.axhline(size - 1.5, color="gray", linewidth=0.8)  # background is apart
    axis.axvline(size - 1.5, color="gray", linewidth=0.8)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the row")
    save_figure(figure, path)


def plot_precision_recall(curves: PrecisionRecall, path: str | os.PathLike[str]) -> None:
    """Write a PNG with a panel per IoU: a line per class and their mean, AP in the legend.

    Of more than ten classes, the ten of lowest AP have a color and a name, the others are gray.
    Classes without objects are left out.
    """
    figure = Figure(figsize=(6.2 * len(IOUS), 5.2), layout="constrained")
    for index, axis in enumerate(figure.subplots(1, len(IOUS), squeeze=False)[0]):
        _curves(axis, curves, index)
        axis.set_title(f"IoU {IOUS[index]}", fontsize=10)
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left", title="AP", title_fontsize=8)
    save_figure(figure, path)


def _curves(axis: Axes, curves: PrecisionRecall, index: int) -> None:
    precision = curves.precision[index]  # [101, classes]
    known = np.flatnonzero(~np.isnan(precision).any(axis=0))
    by_average = known[np.argsort(precision[:, known].mean(axis=0), kind="stable")]
    # Few classes have the same colors in all panels; of many, others may be lowest in each.
    named = known if len(known) <= _NAMED_CURVES else by_average[:_NAMED_CURVES]
    for label in np.setdiff1d(known, named):
        axis.plot(curves.recall, precision[:, label], color="0.8", linewidth=0.7, zorder=1)
    for place, label in enumerate(named):
        style = line_style(int(label) if len(known) <= _NAMED_CURVES else place)
        name = plain(shortened(curves.names[label], _NAME_LENGTH))
        text = f"{name} {precision[:, label].mean():.3f}"
        axis.plot(curves.recall, precision[:, label], **style, linewidth=1.3, label=text)
    if not known.size:
        axis.plot([], [], " ", label="no objects")
        return
    mean = precision[:, known].mean(axis=1)
    text = f"mean of {len(known)} classes {curves.average(index):.3f}"
    axis.plot(curves.recall, mean, color="black", linewidth=2.5, label=text)
