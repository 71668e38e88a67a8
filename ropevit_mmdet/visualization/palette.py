"""Line styles of every plot: colors that color-blind people tell apart, then dashes as well.

Colors: Okabe and Ito, "Color universal design", https://jfly.uni-koeln.de/color/, without the
yellow, which is faint on white.
"""

from typing import Any

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def line_style(index: int) -> dict[str, Any]:
    """Arguments of matplotlib's `plot` for the index-th line of a figure, alike in all its axes."""
    dash = _DASHES[index // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash}
