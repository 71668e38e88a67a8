"""The report of a benchmark as a table and as a plot."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ropevit_mmdet.visualization._figure_file import COLORS, plain, save_figure

_COLUMNS = f"{'seconds':>9} {'spread':>8} {'share':>5} {'GFLOP':>8} {'of rate':>7}"


def table(report: Mapping[str, Any]) -> str:
    """Formats a line per step and one per part, in groups of one size, mode and batch size.

    `share` is that of the step's time, `of rate` that of the device's matrix-multiply rate; ratios
    are to the first of a group.
    """
    settings = "{device}, {threads} threads, {dtype}, torch {torch}, {date}"
    lines = [settings.format_map(report)]
    for (pixels, mode, batch), rows in _groups(report["rows"]):
        rate = f"{rows[0]['matrix_rate'] / 1e12:.3g} TFLOP/s matrix multiplication"
        heading = f"{pixels or 'data'} px, {mode}, batch {batch}, {rate}"
        lines += ["", heading, f"{'':32} {_COLUMNS} {'images/s':>8} {'ratio':>6} {'peak MB':>8}"]
        for row in rows:
            ratio = row["median"] / rows[0]["median"]
            line = f"{_figures(label(row), row, row)} {row['images_per_second']:8.3g}"
            lines.append(f"{line} {ratio:6.2f} {row['peak_bytes'] / 2**20:8.0f}")
            parts = row["parts"].items()
            lines += [_figures(f"  {name}", part, row) for name, part in parts]
    for row in report["skipped"]:
        step = f"{row['pixels']} px, {row['mode']}, batch {row['batch']}"
        lines.append(f"{label(row)}, {step}, skipped: {row['why']}")
    return "\n".join(lines)


def plot(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a PNG of bars, one per step, of the milliseconds per image of its parts."""
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    parts = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    names = [
        plain(f"{label(row)}, {row['pixels'] or 'data'} px, {row['mode']}, batch {row['batch']}")
        for row in rows
    ]
    start = [0.0] * len(rows)
    for index, part in enumerate(parts):
        seconds = [row["parts"].get(part, {"median": 0.0})["median"] / row["batch"] for row in rows]
        width = [1000 * one for one in seconds]
        style: dict[str, Any] = dict(color=COLORS[index % len(COLORS)], edgecolor="white")
        style["hatch"] = ("", "//", "..")[index // len(COLORS) % 3]
        axis.barh(range(len(rows)), width, left=start, label=part, **style)
        start = [a + b for a, b in zip(start, width, strict=True)]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds per image")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def label(row: Mapping[str, Any]) -> str:
    """The name of a step, with what was compiled."""
    return row["name"] + ", compiled" * row["compiled"]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[tuple, list[Mapping[str, Any]]]]:
    def key(row: Mapping[str, Any]) -> tuple:
        return row["pixels"], row["mode"], row["batch"]

    return [(group, list(members)) for group, members in itertools.groupby(rows, key)]


def _figures(name: str, part: Mapping[str, float], whole: Mapping[str, float]) -> str:
    rate = f"{part['share']:7.0%}" if part["flops"] else f"{'':7}"
    flops = f"{part['flops'] / 1e9:8.1f}" if part["flops"] else f"{'':8}"
    share = part["median"] / whole["median"]
    return f"{name:32} {part['median']:9.4f} {part['spread']:8.4f} {share:5.0%} {flops} {rate}"
