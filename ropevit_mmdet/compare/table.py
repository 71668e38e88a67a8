"""A comparison's figures: means and spreads over seeds, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ropevit_mmdet.compare.experiment import mean_and_spread

METRICS = {  # heading -> the end of CocoMetric's name
    "AP": "mAP",
    "AP50": "mAP_50",
    "AP75": "mAP_75",
    "APs": "mAP_s",
    "APm": "mAP_m",
    "APl": "mAP_l",
}
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
        ValueError: an evaluator that is not CocoMetric.
    """
    if not isinstance(evaluator, Mapping) or not evaluator["type"].endswith("CocoMetric"):
        raise ValueError("the protocol's test_evaluator must be one CocoMetric")
    metric = evaluator.get("metric", "bbox")
    wanted = [metric] if isinstance(metric, str) else list(metric)
    settings = {key: value for key, value in evaluator.items() if key != "prefix"}
    return [
        {**settings, "metric": name, "prefix": kind, "classwise": True}
        for kind, name in KINDS.items()
        if name in wanted
    ]


def rows_of(
    results: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """One row per candidate: AP in percent, mean and spread over seeds, and what it costs.

    Args:
        results: by candidate, one result per seed, as ``experiment.result_of`` returns them.
        costs: by candidate, as ``measure_costs`` returns them.
    """
    rows = []
    for name, runs in results.items():
        row: dict[str, Any] = {"name": name, "seeds": len(runs), "AP": {}, "classes": {}}
        for kind, metric in KINDS.items():
            for heading, end in METRICS.items():
                key = f"{kind}/{metric}_{end}"
                if key in runs[0]["metrics"]:
                    row["AP"][f"{kind} {heading}"] = _percent(runs, key)
            ends = "_precision"
            for key in runs[0]["metrics"]:
                if key.startswith(f"{kind}/") and key.endswith(ends):
                    title = f"{kind} {key.removeprefix(f'{kind}/').removesuffix(ends)}"
                    row["classes"][title] = _percent(runs, key)
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
    return "\n".join([note, "", *first, "", *second, ""])


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same in one table; spreads in columns of their own."""
    flat = []
    for row in rows:
        line = {"name": row["name"], "seeds": row["seeds"]}
        for heading, (mean, spread) in (row["AP"] | row["classes"]).items():
            line |= {heading: round(mean, 2), f"{heading} spread": round(spread, 2)}
        costs = {**row["costs"], "training, s": row["training, s"]}
        flat.append(line | {heading: round(value, 4) for heading, value in costs.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """All figures unrounded; each AP as [mean, spread]."""
    return json.dumps(rows, indent=1) + "\n"


def _percent(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    return mean_and_spread([100 * run["metrics"][key] for run in runs])


def _plus_minus(value: tuple[float, float], seeds: int) -> str:
    mean, spread = value
    if mean < 0:
        return "none"  # COCO's -1: no object of that size
    return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _header(cells: Sequence[str]) -> str:
    return f"{_line(cells)}\n|{'---|' * len(cells)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
