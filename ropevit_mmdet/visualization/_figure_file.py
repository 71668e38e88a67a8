"""What all figures share: colors, names, and PNG files written atomically."""

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ropevit_mmdet._output import atomic_file, check_output_directory
from ropevit_mmdet.errors import UserError

# Okabe and Ito, "Color universal design", https://jfly.uni-koeln.de/color/, without the yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 120
_DASHES = ("-", "--", ":", "-.")


def line_style(index: int) -> dict[str, Any]:
    """Arguments of matplotlib's `plot` for the index-th line: first colors, then dashes."""
    dash = _DASHES[index // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file and creates its directory; raises as `check_png` does."""
    check_png(path)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=DPI, format="png")


def check_png(path: str | os.PathLike[str]) -> None:
    """Checks an output path before any work is done for it.

    Raises:
        UserError: the path does not end in `.png`, or cannot be written.
    """
    check_output_directory(Path(path).parent)
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"figures are PNG files: {path} must end in .png")


def plain(name: str) -> str:
    """Escapes a name for matplotlib: no formulas or surrogates, and no names that legends skip."""
    name = name.replace("$", r"\$").encode("utf-8", "replace").decode()
    return f" {name}" if name.startswith("_") else name


def shortened(name: str, max_length: int) -> str:
    """The beginning and the end of a name that is longer than `max_length` characters."""
    if len(name) <= max_length:
        return name
    end = max_length // 3
    return f"{name[: max_length - 1 - end]}…{name[-end:]}"
