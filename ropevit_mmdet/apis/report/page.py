"""The page of a report: its parts, and the HTML file."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ropevit_mmdet._output import atomic_file, check_output_directory
from ropevit_mmdet.apis.compare.report import format_cell, plot_cost
from ropevit_mmdet.apis.report.errors import KINDS
from ropevit_mmdet.apis.report.figures import Table, curves, figure
from ropevit_mmdet.apis.report.run import Settings, describe_run, find_config
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization import read_run
from ropevit_mmdet.visualization.run_log import log_files

COMPARISON = "comparison.json"
_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(source: str | Path, out: str | Path, settings: Settings | None = None) -> None:
    """Writes one HTML file, which needs no network and no other file.

    Args:
        source: the work directory of a run, the directory of a comparison, or a JSON file of
            results, which needs `settings.config`.
        out: the file to write.
        settings: what the report contains.

    Raises:
        UserError: a path that is none of these, or files that cannot be used.
    """
    source, out, settings = Path(source), Path(out), settings or Settings()
    check_output_directory(out.parent)
    comparison = source if source.name == COMPARISON else source / COMPARISON
    if issue := _issue(source, out, settings, comparison.is_file()):
        raise UserError(issue)
    if comparison.is_file():
        page = _comparison(comparison, settings)
    elif source.is_dir():
        page = {"parts": [describe_run(source, settings, name=source.resolve().name)]}
    else:
        settings = replace(settings, results=str(source))
        page = {"parts": [describe_run(None, settings, name=source.name)]}
    text = _render(source, page)
    with atomic_file(out) as file:
        file.write(text.encode("utf-8", "replace"))  # names may have lone surrogates


def _issue(source: Path, out: Path, settings: Settings, is_comparison: bool) -> str:
    named = settings.results or settings.checkpoint
    has_config = settings.config or source.is_dir() and find_config(source)
    if out.is_dir():
        return f"{out} is a directory: give a file, such as report.html"
    if is_comparison:
        both = named or settings.config
        return f"{source} is a comparison: its runs have configs of their own" if both else ""
    if not (source.is_file() or source.is_dir() and (has_config or log_files(source))):
        return f"{source} has no run, comparison or results: see `ropevit report --help`"
    if not has_config and (named or source.is_file()):
        return f"{source}: add --config CONFIG, of the test"
    return ""


def _comparison(file: Path, settings: Settings) -> dict[str, Any]:
    """The table and figures of a comparison, and a part for the first run of each variant."""
    root = file.parent
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        for row in rows:  # JSON has no tuples
            row["AP"] = {key: one and tuple(one) for key, one in row["AP"].items()}
        seeds = rows[0]["seeds"]
        header = ["", *rows[0]["AP"], *rows[0]["costs"]]
        cells = [[*row["AP"].values(), *row["costs"].values()] for row in rows]
        cells = [[row["name"], *(format_cell(one, seeds) for one in of_row)]
                 for row, of_row in zip(rows, cells)]  # fmt: skip
        figures = [figure("", plot_cost, rows)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no result of `ropevit compare`: {error!r}") from error
    failed = root / "comparison.md"
    failures = failed.read_text(encoding="utf-8") if failed.is_file() else ""
    directories = {row["name"]: root / f"{row['name']}-seed0" for row in rows}
    runs = [read_run(path, name) for name, path in directories.items() if log_files(path)]
    share = replace(settings, num_errors=settings.num_errors // len(rows))
    return {
        "comparison": Table(f"AP in percent over {seeds} seeds, and cost", header, cells),
        "figures": figures + (curves(runs) if runs else []),
        "failures": re.findall(r"(?m)^Without (.+)$", failures),
        "parts": [describe_run(path, share, name=name, with_curves=False)
                  for name, path in directories.items()],
    }  # fmt: skip


def _render(source: Path, page: Mapping[str, Any]) -> str:
    import ropevit_mmdet

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    classes = max((part.classes for part in page["parts"]), key=len)
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, ropevit_mmdet {ropevit_mmdet.__version__}"
    fixed = dict(title=source.resolve().name, classes=classes, kinds=KINDS, written=written)
    return template.render({"comparison": None, **fixed, **page})


def _cell(value: Any) -> str:
    """Text of a table's cell: figures with three digits, "" where there are no such objects."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return "" if math.isnan(value) or value < 0 else f"{value:.3f}"
