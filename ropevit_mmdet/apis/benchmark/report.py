"""A benchmark's figures: a report that can be continued, its text table and its plot."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ropevit_mmdet.visualization.figure_file import save_figure
from ropevit_mmdet.visualization.palette import line_style

TITLES = {"forward": "forward", "training": "forward + backward"}


def begin(settings: dict[str, Any], path: str | Path | None, *, command: str) -> dict[str, Any]:
    """A report without figures, or the one in the file at `path`, to be continued.

    Raises ValueError if the file is no report or one of other settings (device, dtype, ...).
    """
    report = settings | {"commands": [], "dates": [], "rows": [], "left_out": []}
    if path and Path(path).exists():
        try:
            report = json.loads(Path(path).read_text())
            found = {key: report[key] for key in settings}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of this benchmark to continue") from error
        for key, value in settings.items():
            if found[key] != value:
                raise ValueError(
                    f"{path} has figures of {key} {found[key]!r}, this run is {value!r}; "
                    "give another file"
                )
    today = time.strftime("%Y-%m-%d")
    for key, value in (("commands", command), ("dates", today)):
        if value not in report[key]:
            report[key].append(value)
    return report


def is_measured(
    report: dict[str, Any],
    variants: Sequence[str],
    pixels: int,
    mode: str,
    *,
    batches_of: Sequence[float] = (),
) -> bool:
    """Whether the report knows every one of the variants at a size: measured, or too large.

    ``batches_of``: the GPUs, by their GB, whose largest batches belong to it.
    """
    asked = {f"{gb:g}" for gb in batches_of}
    rows = _of(report, "rows", pixels, mode)
    done = {row["variant"] for row in rows if asked <= row.get("largest_batch", {}).keys()}
    done |= {row["variant"] for row in _of(report, "left_out", pixels, mode)}
    return done.issuperset(variants)


def add(report: dict[str, Any], rows: list[dict], left_out: list[dict]) -> None:
    """Puts the rows of one size and mode in, for those that were there."""
    places = {(row["pixels"], row["mode"]) for row in rows + left_out}
    for key, new in (("rows", rows), ("left_out", left_out)):
        kept = [row for row in report[key] if (row["pixels"], row["mode"]) not in places]
        report[key] = sorted(kept + new, key=lambda row: (row["pixels"], row["mode"]))


def table(report: dict[str, Any]) -> str:
    """One line per variant, size and mode; ratios are against the first variant of the size."""
    rate = statistics.median([row["matmul_rate"] for row in report["rows"]] or [0.0])
    lines = [
        f"{report['device']}, {report['threads']} threads, {report['dtype']}, batch "
        f"{report['batch']}{', compiled' if report['compiled'] else ''}, torch {report['torch']}, "
        f"{', '.join(report['dates'])}",
        f"matrix multiplication: {rate / 1e9:.1f} GFLOP/s",
        f"{'px':>5} {'mode':18} {'variant':11} {'median s':>9} {'spread':>7} {'ratio':>6} "
        f"{'images/s':>8} "
        f"{'TFLOP':>6} {'of rate':>7} {'peak MB':>8} {'ratio':>6}",
    ]
    for row in report["rows"]:
        first = _of(report, "rows", row["pixels"], row["mode"])[0]
        flops, peak = row["flops"], row.get("peak_bytes")
        share = flops / row["median"] / row["matmul_rate"] if flops else None
        cells = [
            f"{row['pixels']:5} {TITLES[row['mode']]:18} {row['variant']:11}",
            f"{row['median']:9.4f} {row['spread']:7.4f} {row['median'] / first['median']:6.2f}",
            f"{report['batch'] / row['median']:8.3g}",
            f"{flops / 1e12:6.2f} {share:7.1%}" if flops else f"{'':6} {'':7}",
            f"{peak / 2**20:8.0f} {peak / first['peak_bytes']:6.2f}" if peak else "",
            *(f" batch {n} in {gb} GB" for gb, n in row.get("largest_batch", {}).items()),
        ]
        lines.append(" ".join(cells).rstrip())
    for row in report["left_out"]:
        where = f"{row['pixels']:5} {TITLES[row['mode']]:18} {row['variant']:11}"
        lines.append(f"{where} left out: {row['why']}")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: str | Path) -> None:
    """Draws time and peak memory over image size, one line per variant, into a PNG.

    Raises ValueError for another kind of file.
    """
    modes = list(dict.fromkeys(row["mode"] for row in report["rows"]))
    has_memory = any("peak_bytes" in row for row in report["rows"])
    figure = Figure(figsize=(5.2 * len(modes), 4.2 * (1 + has_memory)), layout="constrained")
    axes = figure.subplots(1 + has_memory, len(modes), squeeze=False)
    for column, mode in enumerate(modes):
        _lines(axes[0][column], report, mode, "median", 1.0, "seconds")
        axes[0][column].set_title(TITLES[mode])
        if has_memory:
            _lines(axes[1][column], report, mode, "peak_bytes", 2**30, "GiB above the weights")
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    names = [name for name in _variants(report) if name in handles]
    axes[0][0].legend([handles[name] for name in names], names, fontsize=8)
    figure.suptitle(
        f"{report['device']}, {report['threads']} threads, {report['dtype']}, batch "
        f"{report['batch']}",
        fontsize=10,
    )
    save_figure(figure, path, dpi=130)


def _of(report: dict[str, Any], key: str, pixels: int, mode: str) -> list[dict]:
    return [row for row in report[key] if (row["pixels"], row["mode"]) == (pixels, mode)]


def _variants(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in report["rows"]))


def _lines(axis: Any, report: dict[str, Any], mode: str, key: str, unit: float, label: str) -> None:
    rows = [row for row in report["rows"] if row["mode"] == mode and key in row]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [(row["pixels"], row[key] / unit) for row in rows if row["variant"] == variant]
        style = line_style(_variants(report).index(variant))  # the same in every part of the figure
        axis.plot(*zip(*points, strict=True), **style, marker="o", markersize=4, label=variant)
    sizes = sorted({row["pixels"] for row in rows})
    axis.set(xlabel="image side at patch 14, pixels", ylabel=label, yscale="log", xscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
