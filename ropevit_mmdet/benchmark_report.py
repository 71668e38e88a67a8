"""A benchmark's figures as a text table and as a plot of time and memory over picture size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {"forward": "forward", "training": "forward + backward"}


def table(report: dict[str, Any]) -> str:
    """One line per variant, size and mode; ratios are against the first variant of the size."""
    lines = [
        f"{report['device']}, {report['threads']} threads, {report['dtype']}, batch "
        f"{report['batch']}{', compiled' if report['compiled'] else ''}, torch {report['torch']}, "
        f"{report['date']}",
        f"matrix multiplication: {report['matmul_rate'] / 1e9:.1f} GFLOP/s",
        f"{'px':>5} {'mode':18} {'variant':11} {'median s':>9} {'spread':>7} {'ratio':>6} "
        f"{'TFLOP':>6} {'of rate':>7} {'peak MB':>8} {'ratio':>6}",
    ]
    for row in report["rows"]:
        first = next(
            r for r in report["rows"] if (r["pixels"], r["mode"]) == (row["pixels"], row["mode"])
        )
        flops, peak = row["flops"], row.get("peak_bytes")
        share = flops / row["median"] / row["matmul_rate"] if flops else None
        cells = [
            f"{row['pixels']:5} {TITLES[row['mode']]:18} {row['variant']:11}",
            f"{row['median']:9.3f} {row['spread']:7.3f} {row['median'] / first['median']:6.2f}",
            f"{flops / 1e12:6.2f} {share:7.1%}" if flops else f"{'':6} {'':7}",
            f"{peak / 2**20:8.0f} {peak / first['peak_bytes']:6.2f}" if peak else "",
        ]
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def plot(report: dict[str, Any], path: str | Path) -> None:
    """Draws time and peak memory over picture size, one line per variant, into a PNG."""
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row["mode"] for row in report["rows"]))
    has_memory = any("peak_bytes" in row for row in report["rows"])
    figure = Figure(figsize=(5.2 * len(modes), 4.2 * (1 + has_memory)), layout="constrained")
    axes = figure.subplots(1 + has_memory, len(modes), squeeze=False)
    for column, mode in enumerate(modes):
        _lines(axes[0][column], report, mode, "median", 1.0, "seconds")
        axes[0][column].set_title(TITLES[mode])
        if has_memory:
            _lines(axes[1][column], report, mode, "peak_bytes", 2**30, "GiB above the weights")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(
        f"{report['device']}, {report['threads']} threads, {report['dtype']}, batch "
        f"{report['batch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _lines(axis: Any, report: dict[str, Any], mode: str, key: str, unit: float, label: str) -> None:
    rows = [row for row in report["rows"] if row["mode"] == mode and key in row]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [(row["pixels"], row[key] / unit) for row in rows if row["variant"] == variant]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=variant)
    sizes = sorted({row["pixels"] for row in rows})
    axis.set(xlabel="picture side at patch 14, pixels", ylabel=label, yscale="log", xscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
