"""Figure of a comparison: AP over latency, one point per backbone."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ropevit_mmdet.visualization import COLORS, line_style, save_figure

_MARKERS = ("o", "s", "^", "D")  # the next one after all colors; a point shows no dashes


def plot_cost(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes a PNG of box AP, or else mask AP, over milliseconds per image; see `rows_of`."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    heading = next(iter(rows[0]["AP"]))
    for i, row in enumerate(rows):
        mean, spread = row["AP"][heading] or (math.nan, 0.0)
        label = f"{row['name']}, {row['costs']['parameters, M']:.3g} M parameters"
        style = line_style(i) | {"marker": _MARKERS[i // len(COLORS) % len(_MARKERS)]}
        latency = 1000 / row["costs"]["images/s"]
        axis.errorbar(latency, mean, yerr=spread, capsize=4, label=label, **style)
    axis.set(xlabel="milliseconds per image", ylabel=f"{heading}, percent, test images")
    axis.set_xlim(left=0, right=1.15 * axis.get_xlim()[1])
    axis.set_ylim(bottom=0, top=1.1 * axis.get_ylim()[1])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path, dpi=130)
