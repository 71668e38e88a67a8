"""Tables of a comparison: means and spreads over seeds as Markdown and CSV."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ropevit_mmdet.apis.compare.experiment import AP_ENDS, mean_and_spread

METRICS = {"box": "bbox", "mask": "segm"}


def split_evaluator(evaluator: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Splits an evaluator: in one, the AP per class of masks would overwrite that of boxes."""
    names = evaluator.get("metric", "bbox")  # a name or a list of them
    return [
        {**evaluator, "metric": name, "prefix": prefix, "classwise": True}
        for prefix, name in METRICS.items()
        if name in names
    ]


def rows_of(
    results: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Returns a row per variant: AP in percent, (mean, spread) over seeds, and its cost.

    AP is None where the images have no such object, and 0 for a run without detections.
    """
    metrics = [run["metrics"] for runs in results.values() for run in runs]
    # None is known of the images, even if a run without detections has 0.
    none = {key for one in metrics for key, value in one.items() if value is None}
    titles = _titles([key for one in metrics for key in one])

    def percent(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
        if key in none:
            return None
        return mean_and_spread([100 * run["metrics"].get(key, 0.0) for run in runs])

    rows = []
    for name, runs in results.items():
        row: dict[str, Any] = {"name": name, "seeds": len(runs)}
        for part, keys in titles.items():
            row[part] = {title: percent(runs, key) for title, key in keys.items()}
        seconds, _ = mean_and_spread([run["train_seconds"] for run in runs])
        row["costs"] = {**costs[name], "training, s": seconds}
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats two tables: AP with costs, and AP per class."""
    seeds = rows[0]["seeds"]
    spread = " ± half the distance between the extremes" if seeds > 1 else ""
    text = f"AP in percent, mean over {seeds} seed{'s' * (seeds > 1)}{spread}.\n"
    tables = [[row["AP"] | row["costs"] for row in rows], [row["classes"] for row in rows]]
    for table in filter(all, tables):  # no classes without any detections
        lines = [["", *table[0]], ["---"] * (1 + len(table[0]))]
        for row, values in zip(rows, table, strict=True):
            lines.append([row["name"], *(_text(value, seeds) for value in values.values())])
        text += "".join(f"\n| {' | '.join(map(_literal, line))} |" for line in lines)
        text += "\n"
    return text


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats one table with spreads in separate columns, empty for None."""
    lines = []
    for row in rows:
        line = {"name": row["name"], "seeds": row["seeds"]}
        for heading, value in (row["AP"] | row["classes"]).items():
            line[heading], line[f"{heading} spread"] = value or (None, None)
        lines.append(line | row["costs"])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _titles(keys: Collection[str]) -> dict[str, dict[str, str]]:
    """Metrics by title: `box AP50` is `box/bbox_mAP_50`, `box star` is `box/star_precision`."""
    aps, classes = {}, {}
    for prefix, metric in METRICS.items():
        for end in AP_ENDS:
            title = f"{prefix} {end.removeprefix('m').replace('_', '')}"
            aps[title] = f"{prefix}/{metric}_{end}"
        for key in keys:
            if key.startswith(f"{prefix}/") and key.endswith("_precision"):
                classes[key.removesuffix("_precision").replace("/", " ", 1)] = key
    return {"AP": {title: key for title, key in aps.items() if key in keys}, "classes": classes}


def _text(value: Any, seeds: int) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        mean, spread = value
        return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _literal(cell: str) -> str:
    """Escapes what would end a cell, in names of classes."""
    return " ".join(cell.split()).replace("|", r"\|")
