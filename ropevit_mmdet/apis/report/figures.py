"""Figures and tables of a report, as its template takes them."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from PIL import Image

from ropevit_mmdet.visualization import RunLog, plot_runs
from ropevit_mmdet.visualization.run_log import Entries

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


def figure(caption: str, plot: Callable[..., None], *args: Any, **settings: Any) -> Figure:
    """Calls a function that writes a PNG file at `path`."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "figure.png"
        plot(*args, path=path, **settings)
        with Image.open(path) as image:
            return encode(image, caption, lossless=True)


def curves(runs: Sequence[RunLog]) -> list[Figure]:
    """A figure for each loss, the learning rate and each metric of validation named `*_mAP`."""
    keys = dict.fromkeys(key for run in runs for one in (*run.val, *run.train) for key in one)
    rates = [key for key in ("base_lr", "lr") if key in keys][:1]
    shown = [key for key in keys if "loss" in key or key.endswith("_mAP") or key in rates]
    order = sorted(shown, key=lambda key: (key != "loss", "loss" in key))
    figures = []
    for key in order[:_MAX_CURVES]:
        only = [replace(one, train=_only(one.train, key), val=_only(one.val, key)) for one in runs]
        figures.append(figure("", plot_runs, only, metric=key))
    return figures


def _only(entries: Entries, key: str) -> Entries:
    return [{"step": entry["step"], key: entry[key]} for entry in entries if key in entry]
