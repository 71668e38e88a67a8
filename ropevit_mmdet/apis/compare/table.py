"""A comparison's figures: means and spreads over seeds, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ropevit_mmdet.apis.compare.experiment import AP_ENDS, mean_and_spread

KINDS = {"box": "bbox", "mask": "segm"}
COSTS = {  # heading -> of a cost as ``measure_costs`` gives it
    "parameters, M": lambda cost: cost["parameters"] / 1e6,
    "backbone, M": lambda cost: cost["backbone_parameters"] / 1e6,
    "GFLOP": lambda cost: cost["gflops"],
    "images/s": lambda cost: 1 / cost["seconds_per_image"],
    "peak MB": lambda cost: cost["peak_bytes"] / 1e6,
}


def two_evaluators(evaluator: Mapping[str, Any]) -> list[dict[str, Any]]:
    """CocoMetric once for boxes and once for masks: together, the masks' AP per class would
    overwrite that of the boxes. Figures are then called ``box/...`` and ``mask/...``.

    Raises:
        ValueError: an evaluator that is not CocoMetric, or one of neither boxes nor masks.
    """
    if not isinstance(evaluator, Mapping) or not evaluator["type"].endswith("CocoMetric"):
        raise ValueError("the protocol's test_evaluator must be one CocoMetric")
    metric = evaluator.get("metric", "bbox")
    wanted = [metric] if isinstance(metric, str) else list(metric)
    settings = {key: value for key, value in evaluator.items() if key != "prefix"}
    if not set(wanted) & set(KINDS.values()):
        raise ValueError(f"the protocol's test_evaluator.metric is {metric!r}: give bbox or segm")
    return [
        {**settings, "metric": name, "prefix": kind, "classwise": True}
        for kind, name in KINDS.items()
        if name in wanted
    ]


def rows_of(
    results: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """One row per candidate: AP in percent, mean and spread over seeds, and what it costs.

    AP is None where the images have no such object, and 0 for a run that found nothing at all.

    Args:
        results: by candidate, one result per seed, as ``experiment.result_of`` returns them.
        costs: by candidate, as ``measure_costs`` returns them.
    """
    found = [run["metrics"] for runs in results.values() for run in runs]
    known = dict.fromkeys(key for metrics in found for key in metrics)
    # Whether there are such objects is the same for all, though a run that finds nothing says 0.
    none = {key for metrics in found for key, value in metrics.items() if value is None}
    titles: dict[str, dict[str, str]] = {"AP": {}, "classes": {}}
    for kind, metric in KINDS.items():
        ours = [key for key in known if key.startswith(f"{kind}/")]
        for end in AP_ENDS:
            if (key := f"{kind}/{metric}_{end}") in ours:
                titles["AP"][key] = f"{kind} {end.removeprefix('m').replace('_', '')}"
        for key in ours:
            if key.endswith(ends := "_precision"):
                titles["classes"][key] = key.removesuffix(ends).replace("/", " ", 1)
    rows = []
    for name, runs in results.items():
        row: dict[str, Any] = {"name": name, "seeds": len(runs)}
        for part, of_part in titles.items():
            row[part] = {
                title: None if key in none else _percent(runs, key)
                for key, title in of_part.items()
            }
        row["training, s"] = mean_and_spread([run["train_seconds"] for run in runs])[0]
        row["costs"] = {heading: value(costs[name]) for heading, value in COSTS.items()}
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: AP with costs, and AP per class."""
    seeds = rows[0]["seeds"]
    costs = [{**row["costs"], "training, s": row["training, s"]} for row in rows]
    first = [_header(["", *rows[0]["AP"], *costs[0]])]
    second = [_header(["", *rows[0]["classes"]])]
    for row, cost in zip(rows, costs, strict=True):
        values = [_plus_minus(value, seeds) for value in row["AP"].values()]
        values += [_three_digits(value) for value in cost.values()]
        first.append(_line([row["name"], *values]))
        classes = [_plus_minus(value, seeds) for value in row["classes"].values()]
        second.append(_line([row["name"], *classes]))
    spread = " ± half the distance between the extremes" if seeds > 1 else ""
    note = f"AP in percent, mean over {seeds} seed{'s' * (seeds > 1)}{spread}."
    by_class = ["", *second] if rows[0]["classes"] else []  # nobody found anything
    return "\n".join([note, "", *first, *by_class, ""])


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same in one table; spreads in columns of their own, empty for None."""
    flat = []
    for row in rows:
        line = {"name": row["name"], "seeds": row["seeds"]}
        for heading, value in (row["AP"] | row["classes"]).items():
            mean, spread = ("", "") if value is None else (round(part, 2) for part in value)
            line |= {heading: mean, f"{heading} spread": spread}
        costs = {**row["costs"], "training, s": row["training, s"]}
        flat.append(line | {heading: round(value, 4) for heading, value in costs.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """All figures unrounded; each AP as [mean, spread], or null."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _percent(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    return mean_and_spread([100 * run["metrics"].get(key, 0.0) for run in runs])


def _plus_minus(value: tuple[float, float] | None, seeds: int) -> str:
    if value is None:
        return "none"
    mean, spread = value
    return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _header(cells: Sequence[str]) -> str:
    return f"{_line(cells)}\n|{'---|' * len(cells)}"


def _line(cells: Sequence[str]) -> str:
    """A row: class names may hold what would end a cell."""
    literal = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(literal)} |"
