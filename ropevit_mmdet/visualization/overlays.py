"""Draw detections so that they can be read on small images and on large ones, with Pillow."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ropevit_mmdet.visualization.labels import FONT, ROOM, Color, Label, Rectangle, draw_labels

_READABLE_SIDE = 640  # pixels; smaller images are enlarged by a whole number to at least this
_LONGEST_SIDE = 4096  # pixels; up to it, narrow images are enlarged until a label has room
_FILL = 0.4  # opacity of masks


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
    image: np.ndarray, detections: Sequence[Detection], names: Sequence[str]
) -> np.ndarray:
    """An RGB image [H, W, 3], uint8, with masks, boxes, names and scores drawn over it.

    An image whose longer side is under 640 pixels, or whose shorter one under 160, comes back
    enlarged by a whole number.
    """
    height, width = image.shape[:2]
    scale = _scale(height, width)
    canvas = Image.fromarray(image)
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
    labels = [
        Label(
            _name(names, one.label),
            "" if one.score is None else f"{one.score:.2f}",
            tuple(side * scale for side in one.box),
            class_color(one.label),
        )
        for one in sorted(detections, key=_score, reverse=True)
    ]
    draw_labels(canvas, labels, names)
    return np.asarray(canvas)


def contact_sheet(images: Sequence[np.ndarray], *, columns: int = 4, cell: int = 480) -> np.ndarray:
    """Images [H, W, 3], each fitted into a cell of `cell` x `cell` pixels, row by row."""
    gap = max(4, cell // 60)
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    size = (columns * (cell + gap) + gap, rows * (cell + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        image = Image.fromarray(image)
        factor = cell / max(image.size)
        image = image.resize(
            tuple(max(1, round(side * factor)) for side in image.size), Image.Resampling.LANCZOS
        )
        row, column = divmod(index, columns)
        left = gap + column * (cell + gap) + (cell - image.width) // 2
        top = gap + row * (cell + gap) + (cell - image.height) // 2
        sheet.paste(image, (left, top))
    return np.asarray(sheet)


def side_by_side(images: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Images [H, W, 3] of one height next to each other, each under its title."""
    height = images[0].shape[0]
    gap = max(4, height // 100)
    font = ImageFont.truetype(FONT, min(48, max(16, round(height / 30))))
    bar = round(1.6 * font.size)
    widths = [
        max(image.shape[1], math.ceil(font.getlength(title)) + gap)
        for image, title in zip(images, titles, strict=True)
    ]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(images) - 1), bar + height), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for image, title, width in zip(images, titles, widths):
        sheet.paste(Image.fromarray(image), (left + (width - image.shape[1]) // 2, bar))
        draw.text((left + width / 2, bar / 2), title, fill="black", font=font, anchor="mm")
        left += width + gap
    return np.asarray(sheet)


def class_color(label: int) -> Color:
    """RGB of a class: hues a golden section apart, so that neighbours in number differ most."""
    hue = (0.02 + label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.65)[label // 8 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _scale(height: int, width: int) -> int:
    """By how much an image is enlarged."""
    short, long = sorted((height, width))
    room = min(math.ceil(ROOM / short), _LONGEST_SIDE // long)
    return max(1, math.ceil(_READABLE_SIDE / long), room)


def _draw_mask(canvas: Image.Image, mask: np.ndarray, scale: int, color: Color, line: int) -> None:
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
