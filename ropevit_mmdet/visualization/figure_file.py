"""Figures of matplotlib as PNG files, written whole or not at all, without a display."""

import io
import os
from pathlib import Path

from matplotlib.figure import Figure
from mmengine import fileio

from ropevit_mmdet._output import check_output_directory


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Write a figure as a PNG file, whose directory is made; raises ValueError as `check_png`."""
    check_png(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
    fileio.put(buffer.getvalue(), str(path))


def plain(name: str) -> str:
    """A name as matplotlib shows it letter by letter: not as a formula, nor left out of legends."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def shortened(name: str, at_most: int) -> str:
    """A name of so many characters at most: its beginning, which tells most, and its end."""
    if len(name) <= at_most:
        return name
    end = (at_most - 1) // 3
    return f"{name[: at_most - 1 - end]}…{name[len(name) - end :]}"


def check_png(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a file that is to have another suffix or cannot be written.

    To be called before any work is done for the file.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are PNG files: {path} must end in .png")
    check_output_directory(path.parent)
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise ValueError(f"cannot write {path}: a directory, or not writable")
