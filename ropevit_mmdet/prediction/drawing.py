"""Draw detections so that they can be read on small pictures and on large ones, with Pillow."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_READABLE_SIDE = 640  # pixels; smaller pictures are enlarged by a whole number to at least this
_FILL = 0.4  # opacity of masks
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Detection:
    """One object: box (x1, y1, x2, y2) in pixels, its class, and its mask [H, W] if any.

    Of an object that is annotated, not found, the score is None.
    """

    box: Rectangle
    label: int
    score: float | None
    mask: np.ndarray | None = None


def draw_detections(
    picture: np.ndarray, detections: Sequence[Detection], names: Sequence[str]
) -> np.ndarray:
    """An RGB picture [H, W, 3], uint8, with masks, boxes, names and scores drawn over it.

    A picture whose longer side is under 640 pixels comes back enlarged by a whole number.
    """
    height, width = picture.shape[:2]
    scale = max(1, math.ceil(_READABLE_SIDE / max(height, width)))
    canvas = Image.fromarray(picture)
    if scale > 1:
        canvas = canvas.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    long_side = max(canvas.size)
    line = max(2, round(long_side / 500))
    by_area = sorted(detections, key=_area, reverse=True)  # small objects stay on top
    for detection in by_area:
        if detection.mask is not None and detection.mask.any():
            _draw_mask(canvas, detection.mask, scale, class_color(detection.label), line)
    draw = ImageDraw.Draw(canvas)
    for detection in by_area:
        box = _within([side * scale for side in detection.box], canvas.size)
        draw.rectangle(box, outline=class_color(detection.label), width=line)
    font = ImageFont.truetype(str(_FONT), min(36, max(13, round(long_side / 48))))
    taken: list[Rectangle] = []
    for detection in sorted(detections, key=_score, reverse=True):
        text = _name(names, detection.label)
        if detection.score is not None:
            text += f" {detection.score:.2f}"
        box = [side * scale for side in detection.box]
        color = class_color(detection.label)
        taken.append(_draw_label(draw, text, box, color, font, taken, canvas.size))
    return np.asarray(canvas)


def contact_sheet(
    pictures: Sequence[np.ndarray], *, columns: int = 4, cell: int = 480
) -> np.ndarray:
    """Pictures [H, W, 3], each fitted into a cell of `cell` x `cell` pixels, row by row."""
    gap = max(4, cell // 60)
    rows = math.ceil(len(pictures) / columns)
    columns = min(columns, len(pictures))
    size = (columns * (cell + gap) + gap, rows * (cell + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        factor = cell / max(image.size)
        image = image.resize(
            tuple(max(1, round(side * factor)) for side in image.size), Image.Resampling.LANCZOS
        )
        row, column = divmod(index, columns)
        left = gap + column * (cell + gap) + (cell - image.width) // 2
        top = gap + row * (cell + gap) + (cell - image.height) // 2
        sheet.paste(image, (left, top))
    return np.asarray(sheet)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Pictures [H, W, 3] of one height next to each other, each under its title."""
    height = pictures[0].shape[0]
    gap = max(4, height // 100)
    font = ImageFont.truetype(str(_FONT), min(48, max(16, round(height / 30))))
    bar = round(1.6 * font.size)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, bar + height), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        sheet.paste(Image.fromarray(picture), (left, bar))
        middle = (left + picture.shape[1] / 2, bar / 2)
        draw.text(middle, title, fill="black", font=font, anchor="mm")
        left += picture.shape[1] + gap
    return np.asarray(sheet)


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of a class: hues a golden section apart, so that neighbours in number differ most."""
    hue = (0.02 + label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.65)[label // 8 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_mask(
    canvas: Image.Image, mask: np.ndarray, scale: int, color: tuple[int, int, int], line: int
) -> None:
    """Fill a mask and trace its outline, touching no more of the canvas than the mask's own box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, rows[0] - 1), max(0, columns[0] - 1)
    bottom, right = min(mask.shape[0], rows[-1] + 2), min(mask.shape[1], columns[-1] + 2)
    part = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
    if scale > 1:
        size = (part.width * scale, part.height * scale)
        part = part.resize(size, Image.Resampling.BILINEAR).point(lambda value: 255 * (value > 127))
    corner = (int(left) * scale, int(top) * scale)
    paint = Image.new("RGB", part.size, color)
    canvas.paste(paint, corner, part.point(lambda value: round(value * _FILL)))
    inner = np.asarray(part.filter(ImageFilter.MinFilter(2 * (line // 2) + 1)))
    outline = Image.fromarray(np.where(inner > 0, 0, np.asarray(part)).astype(np.uint8))
    canvas.paste(paint, corner, outline)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    taken: Sequence[Rectangle],
    size: tuple[int, int],
) -> Rectangle:
    """Write a name at the corner of its box that hides least of earlier ones; returns its place."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right + 6, bottom + 4
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2)]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((x, y, x + width, y + height))
    place = min(places, key=lambda place: sum(_overlap(place, other) for other in taken))
    red, green, blue = color
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.rectangle(place, fill=color)
    draw.text((place[0] + 3, place[1] + 1), text, fill=ink, font=font)
    return place


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _within(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """The box cut to the canvas, its right and bottom no smaller than its left and top."""
    left, top = min(max(0, box[0]), size[0] - 1), min(max(0, box[1]), size[1] - 1)
    return left, top, max(left, min(box[2], size[0] - 1)), max(top, min(box[3], size[1] - 1))


def _score(detection: Detection) -> float:
    return 1.0 if detection.score is None else detection.score


def _area(detection: Detection) -> float:
    x1, y1, x2, y2 = detection.box
    return (x2 - x1) * (y2 - y1)


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else f"class {label}"
