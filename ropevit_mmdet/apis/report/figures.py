"""Figures and tables of a report, as its template takes them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from matplotlib import figure as matplotlib
from PIL import Image

from ropevit_mmdet.visualization import plot_runs
from ropevit_mmdet.visualization._figure_file import DPI
from ropevit_mmdet.visualization.run_log import Entries, RunLog

_MAX_CURVES = 16  # mask transformers log a loss per layer


class Figure(NamedTuple):
    """An image as a data URI."""

    caption: str
    uri: str
    width: int


class Table(NamedTuple):
    """`labels` are the class labels of the rows, None for a row of all classes."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    labels: Sequence[int | None] = ()


def encode(image: Image.Image, caption: str = "", **settings: Any) -> Figure:
    """Encodes an image as WebP, with settings as in Pillow."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", **settings)
    code = base64.b64encode(file.getvalue()).decode("ascii")
    return Figure(caption, f"data:image/webp;base64,{code}", image.width)


def render(figure: matplotlib.Figure, caption: str = "") -> Figure:
    """Encodes a figure without loss."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return encode(Image.open(file), caption, lossless=True)


def curves(runs: Sequence[RunLog]) -> list[Figure]:
    """A figure for each loss, the learning rate and each metric of validation named `*mAP`."""
    keys = dict.fromkeys(key for run in runs for one in (*run.val, *run.train) for key in one)
    rates = [key for key in ("base_lr", "lr") if key in keys][:1]
    shown = [key for key in keys if "loss" in key or key.endswith("mAP") or key in rates]
    order = sorted(shown, key=lambda key: (key != "loss", "loss" in key))
    figures = []
    for key in order[:_MAX_CURVES]:
        only = [replace(one, train=_only(one.train, key), val=_only(one.val, key)) for one in runs]
        figures.append(render(plot_runs(only, metric=key)))
    return figures


def _only(entries: Entries, key: str) -> Entries:
    return [{"step": entry["step"], key: entry[key]} for entry in entries if key in entry]
