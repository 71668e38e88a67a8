"""The figures of a benchmark: a JSON report that a later run continues, a table and a plot."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization import line_style, save_figure

TITLES = {"forward": "forward", "training": "forward + backward"}


def begin(settings: dict[str, Any], path: str | Path | None, *, command: str) -> dict[str, Any]:
    """Returns a new report, or the one in the file at `path`, which must have the same settings."""
    report = settings | {"commands": [], "dates": [], "rows": [], "skipped": []}
    if path and Path(path).exists():
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        other = {key: report.get(key) for key in settings if report.get(key) != settings[key]}
        if other:
            raise UserError(f"{path} has figures of other settings, {other}; give another file")
    for key, value in (("commands", command), ("dates", time.strftime("%Y-%m-%d"))):
        if value not in report[key]:
            report[key].append(value)
    return report


def is_measured(
    report: dict[str, Any],
    variants: Sequence[str],
    pixels: int,
    mode: str,
    *,
    gigabytes: Sequence[float] = (),
) -> bool:
    """Returns whether a report has all variants at a size, with the largest batches if any."""
    batches = {f"{gb:g}" for gb in gigabytes}
    done = {
        row["variant"]
        for row in report["rows"] + report["skipped"]
        if _size(row) == (pixels, mode)
        and ("why" in row or batches <= row.get("largest_batch", {}).keys())
    }
    return done.issuperset(variants)


def replace_rows(report: dict[str, Any], rows: list[dict], skipped: list[dict]) -> None:
    """Replaces the rows of one size and mode in place."""
    replaced = [_size(row) for row in rows + skipped]
    for key, new in (("rows", rows), ("skipped", skipped)):
        kept = [row for row in report[key] if _size(row) not in replaced]
        report[key] = sorted(kept + new, key=_size)


def table(report: dict[str, Any]) -> str:
    """Formats one line per variant, size and mode; ratios are to the first variant of a size."""
    compiled = ", compiled" if report["compiled"] else ""
    lines = [
        f"{_title(report)}{compiled}, torch {report['torch']}, {', '.join(report['dates'])}",
        f"{'px':>5} {'mode':18} {'variant':11} {'median s':>9} {'spread':>7} {'ratio':>6} "
        f"{'images/s':>8} {'TFLOP':>6} {'peak MB':>8} {'ratio':>6}",
    ]
    firsts: dict[tuple[int, str], dict] = {}
    for row in report["rows"]:
        first, median = firsts.setdefault(_size(row), row), row["median"]
        line = (
            f"{_name(row)} {median:9.4f} {row['spread']:7.4f} {median / first['median']:6.2f} "
            f"{report['batch'] / median:8.3g} {row['flops'] / 1e12:6.2f}"
        )
        if peak := row.get("peak_bytes"):
            line += f" {peak / 2**20:8.0f} {peak / first['peak_bytes']:6.2f}"
        for gb, batch in row.get("largest_batch", {}).items():
            line += f" batch {batch} in {gb} GB"
        lines.append(line)
    lines += [f"{_name(row)} skipped: {row['why']}" for row in report["skipped"]]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: str | Path) -> None:
    """Writes a PNG of time and peak memory over image size, a line per variant."""
    rows = report["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    panels = [("median", 1.0, "seconds")]
    if any("peak_bytes" in row for row in rows):
        panels.append(("peak_bytes", 2**30, "GiB above the weights"))
    figure = Figure(figsize=(5.2 * len(modes), 4.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(modes), squeeze=False)
    for line, (key, unit, label) in zip(axes, panels, strict=True):
        for axis, mode in zip(line, modes, strict=True):
            _draw(axis, rows, mode, key, unit)
            axis.set(title=TITLES[mode], ylabel=label)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(_title(report), fontsize=10)
    save_figure(figure, path, dpi=130)


def _draw(axis: Axes, rows: list[dict], mode: str, key: str, unit: float) -> None:
    for index, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        points = {
            row["pixels"]: row[key] / unit
            for row in rows
            if (row["variant"], row["mode"]) == (variant, mode) and key in row
        }
        style = line_style(index) | dict(marker="o", markersize=4, label=variant)
        axis.plot(list(points), list(points.values()), **style)
    sizes = sorted({row["pixels"] for row in rows})
    axis.set(xlabel="image side at patch 14, pixels", yscale="log", xscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)


def _size(row: dict[str, Any]) -> tuple[int, str]:
    return row["pixels"], row["mode"]


def _title(report: dict[str, Any]) -> str:
    threads, batch = report["threads"], report["batch"]
    return f"{report['device']}, {threads} threads, {report['dtype']}, batch {batch}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['pixels']:5} {TITLES[row['mode']]:18} {row['variant']:11}"
