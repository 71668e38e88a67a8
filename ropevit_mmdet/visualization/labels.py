"""Names and scores beside boxes, placed so that they hide little of each other and of an image."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from ropevit_mmdet.visualization.figure_file import shortened

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
ROOM = 160  # pixels; as wide as a usual name with its score in the smallest letters
_HIDDEN = 0.1  # the share of a label that may lie over better ones
_COVERED = 0.25  # the share of an image from which on no more labels are written

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Label:
    """What is to be written beside a box (x1, y1, x2, y2): a name, and `score` as it is read."""

    name: str
    score: str
    box: Rectangle
    color: Color


def draw_labels(canvas: Image.Image, labels: Sequence[Label], names: Sequence[str]) -> None:
    """Write labels, best first, each at the corner of its box that hides least of better ones.

    A label wider than half the image is shortened, but not its score. One that would hide too
    much of better ones is left out, and so are all once labels cover a quarter of the image.
    `names` are all that may come: what the usual font lacks is written in one font for all.
    """
    size = font_size(canvas.size)
    at_most = min(canvas.width, max(ROOM, canvas.width // 2))
    draw = ImageDraw.Draw(canvas)
    written: list[tuple[Label, str, ImageFont.FreeTypeFont, Rectangle]] = []
    free = _COVERED * canvas.width * canvas.height
    for label in labels:
        if free <= 0:
            break
        font = ImageFont.truetype(_font_file(label.name, tuple(names)), size)
        text, width, height = _fitted(draw, label, font, at_most)
        taken = [place for *_, place in written]
        hidden, place = _place(label.box, (width, height), taken, canvas.size)
        if hidden <= _HIDDEN * width * height:
            written.append((label, text, font, place))
            free -= width * height
    for label, text, font, place in reversed(written):  # the best on top
        red, green, blue = label.color
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        draw.rectangle(place, fill=label.color)
        draw.text((place[0] + 3, place[1] + 1), text, fill=ink, font=font)


def font_size(size: tuple[int, int]) -> int:
    """Of labels in an image of a size, pixels."""
    return min(36, max(13, round(min(max(size) / 48, min(size) / 12))))


def _fitted(
    draw: ImageDraw.ImageDraw, label: Label, font: ImageFont.FreeTypeFont, at_most: int
) -> tuple[str, float, float]:
    """A label's text, its name shortened to a width in pixels; width and height of its place."""
    name = " ".join(label.name.split())
    for length in range(max(1, min(len(name), at_most)), 0, -1):
        text = f"{shortened(name, length)} {label.score}".strip()
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        if right + 6 <= at_most:
            break
    return text, right + 6, bottom + 4


def _place(
    box: Rectangle,
    label: tuple[float, float],
    taken: Sequence[Rectangle],
    size: tuple[int, int],
) -> tuple[float, Rectangle]:
    """The corner for a label (width, height), and how many pixels it hides of those taken there."""
    (width, height), (x1, y1, x2, y2) = label, box
    corners = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2)]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((x, y, x + width, y + height))
    hidden = [sum(_overlap(place, other) for other in taken) for place in places]
    least = min(range(len(places)), key=hidden.__getitem__)
    return hidden[least], places[least]


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _font_file(name: str, names: tuple[str, ...]) -> str:
    """The usual font if it has all of the name, else the one that has most of all names."""
    usual = font_manager.get_font(FONT)
    return _other_font(frozenset("".join(names))) if _lacking(usual, name) else FONT


@lru_cache(maxsize=16)
def _other_font(characters: frozenset[str]) -> str:
    """The font of the system that has most of the characters; what it lacks is said, once."""
    best, lacking = FONT, _lacking(font_manager.get_font(FONT), characters)
    rank = len(lacking), False
    for path in sorted(font_manager.findSystemFonts()):
        try:
            font = font_manager.get_font(path)
            ImageFont.truetype(path, 13)
        except (OSError, RuntimeError):  # damaged, or of images of one size
            continue
        lacks = _lacking(font, characters)
        ranked = len(lacks), font.style_name not in ("Regular", "Book")
        if ranked < rank:
            best, lacking, rank = path, lacks, ranked
    if lacking:
        logging.getLogger(__name__).warning(
            "no font here has all of the class names, %s are drawn as empty boxes: install one "
            "that has them, such as Noto Sans CJK",
            " ".join(sorted(lacking)[:20]),
        )
    return best


def _lacking(font: FT2Font, characters: Iterable[str]) -> set[str]:
    """Characters without a shape in a font; spaces need none."""
    return {one for one in characters if not one.isspace() and not font.get_char_index(ord(one))}
