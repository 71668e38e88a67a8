"""Results of a comparison: means and spreads over seeds, a table, and AP over latency."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ropevit_mmdet.apis.compare.experiment import mean_and_spread
from ropevit_mmdet.visualization._figure_file import line_style

TITLES = {  # of CocoMetric's figures
    f"{metric}_mAP{end}": f"{name} AP{end.removeprefix('_')}"
    for metric, name in (("bbox", "box"), ("segm", "mask"))
    for end in ("", "_50", "_75", "_s", "_m", "_l")
}


def rows_of(
    results: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Returns a row per variant: AP in percent, (mean, spread) over seeds, and its cost.

    AP is None where the images have no such object, and 0 for a run without detections.
    """
    metrics = [run["metrics"] for runs in results.values() for run in runs]
    # None is known of the images, even if a run without detections has 0.
    none = {key for one in metrics for key, value in one.items() if value is None}
    titles = {key: TITLES.get(key.rpartition("/")[2]) for key in metrics[0]}
    rows = []
    for name, runs in results.items():
        aps = {
            title: None
            if key in none
            else mean_and_spread([100 * run["metrics"][key] for run in runs])
            for key, title in titles.items()
            if title
        }
        seconds, _ = mean_and_spread([run["train_seconds"] for run in runs])
        cost = {**costs[name], "training, s": seconds}
        rows.append({"name": name, "seeds": len(runs), "AP": aps, "costs": cost})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a table of AP and costs, with a header."""
    lines = [["", *rows[0]["AP"], *rows[0]["costs"]]]
    for row in rows:
        values = [*row["AP"].values(), *row["costs"].values()]
        lines.append([row["name"], *(_cell(value, row["seeds"]) for value in values)])
    return lines


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the table."""
    seeds = rows[0]["seeds"]
    spread = " ± half the distance between the extremes" if seeds > 1 else ""
    header, *lines = table_of(rows)
    lines = [header, ["---"] * len(header), *lines]
    table = "".join(f"\n| {' | '.join(line)} |" for line in lines)
    return f"AP in percent, mean over {seeds} seed{'s' * (seeds > 1)}{spread}.\n{table}\n"


def plot_cost(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots box AP, or else mask AP, over milliseconds per image; see `rows_of`."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axis = figure.subplots()
    heading = next(iter(rows[0]["AP"]))
    for i, row in enumerate(rows):
        mean, spread = row["AP"][heading] or (math.nan, 0.0)
        label = f"{row['name']}, {row['costs']['parameters, M']:.3g} M parameters"
        latency = 1000 / row["costs"]["images/s"]
        style = line_style(i) | {"marker": "os^D"[i % 4]}
        axis.errorbar(latency, mean, yerr=spread, capsize=4, label=label, **style)
    axis.set(xlabel="milliseconds per image", ylabel=f"{heading}, percent, test images")
    axis.margins(0.1)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _cell(value: Any, seeds: int) -> str:
    """A cell of the table: AP (mean, spread), None, or a cost."""
    if value is None:
        return "none"
    if isinstance(value, Sequence):  # JSON has no tuples
        mean, spread = value
        return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
