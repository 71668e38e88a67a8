"""The page of a report: its parts, and the HTML file."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from ropevit_mmdet import __version__
from ropevit_mmdet._output import atomic_file, check_output_directory
from ropevit_mmdet.apis.compare.report import plot_cost, table_of
from ropevit_mmdet.apis.report.errors import TYPES
from ropevit_mmdet.apis.report.figures import Table, curves, render
from ropevit_mmdet.apis.report.run import MAX_ERRORS, describe_run, is_run
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization.run_log import log_files, read_run

_COMPARISON = "comparison.json"
_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    source: str | Path,
    out: str | Path,
    *,
    config: str | None = None,
    checkpoint: str | None = None,
    score_thr: float = 0.3,
    cfg_options: Sequence[str] = (),
) -> None:
    """Writes one HTML file, which needs no network and no other file.

    Args:
        source: the work directory of a run, whose `results.json` is read if it has one; the
            directory of a comparison; or a JSON file of results, which needs `config`.
        out: the file to write.
        config: file or packaged name, by default that of the run; not for a comparison.
        checkpoint: for features, by default the last one of the run; not for a comparison.
        score_thr: minimum score of detections in the confusion matrix and among the errors.
        cfg_options: changes of the config, as for `load_config`.

    Raises:
        UserError: a path that is none of these, or files that cannot be used.
    """
    source, out = Path(source), Path(out)
    check_output_directory(out.parent)
    comparison = source if source.name == _COMPARISON else source / _COMPARISON
    issue = ""
    if out.is_dir():
        issue = f"{out} is a directory: give a file, such as report.html"
    elif comparison.is_file():
        issue = "its runs have configs and checkpoints" if config or checkpoint else ""
    elif not source.is_file() and not is_run(source):
        issue = "no run, comparison or results: see `ropevit report --help`"
    elif not config and source.is_file():
        issue = "results need --config CONFIG, of the test"
    if issue:
        raise UserError(f"{source}: {issue}")
    settings: dict[str, Any] = dict(score_thr=score_thr, cfg_options=cfg_options)
    if comparison.is_file():
        page = _comparison(comparison, settings)
    else:
        page = {"parts": [describe_run(source, config, checkpoint, **settings)]}
    text = _render(source.resolve().name, page)
    with atomic_file(out) as file:
        file.write(text.encode("utf-8", "replace"))  # names may have lone surrogates


def _comparison(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The table and figures of a comparison, and a part for the first run of each variant."""
    root, failed = file.parent, file.with_suffix(".md")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        header, *cells = table_of(rows)
        figures = [render(plot_cost(rows))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no result of `ropevit compare`: {error!r}") from error
    directories = {row["name"]: root / f"{row['name']}-seed0" for row in rows}
    existing = [path for path in directories.values() if path.is_dir()]
    settings |= dict(max_errors=MAX_ERRORS // len(rows), with_curves=False)
    runs = [read_run(path, name) for name, path in directories.items() if log_files(path)]
    failures = failed.read_text(encoding="utf-8") if failed.is_file() else ""
    return {
        "comparison": Table(f"AP in percent, {rows[0]['seeds']} seeds, and cost", header, cells),
        "figures": figures + (curves(runs) if runs else []),
        "failures": re.findall(r"(?m)^Without (.+)$", failures),
        "parts": [describe_run(path, **settings) for path in existing],
    }


def _render(title: str, page: dict[str, Any]) -> str:
    settings: dict[str, Any] = dict(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = Template(_TEMPLATE.read_text(encoding="utf-8"), autoescape=True, **settings)
    classes = max((part.classes for part in page["parts"]), key=len, default=())
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, ropevit_mmdet {__version__}"
    fixed = dict(title=title, classes=classes, types=TYPES, written=written, comparison=None)
    return template.render(fixed | page)
