"""Draw one image of the shapes dataset: cluttered ground, overlapping shapes, sensor noise.

A scene is planned from the front to the back, so that a shape which the shapes before it would hide
is never drawn at all, and then painted from the back to the front. Masks come from the same
supersampled coverage that is painted, cut at one half.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ropevit_mmdet.datasets.shapes.rendering import (
    background,
    overlap,
    paint_shape,
    photograph,
    shape_colors,
)

CLASSES = ("circle", "square", "triangle", "star", "ring")
MIN_SIDE = 64  # pixels; a shorter image has no room for shapes of several sizes

EMPTY_SHARE = 0.04  # of the images
CROWD_SHARE = 0.10  # of the images that are not empty
TINY_SHARE = 0.10  # of the objects
TINY_SIZES = (12.0, 24.0)  # pixels
CROWD_SIZES = (8.0, 13.0)  # pixels
LARGEST = 0.58  # of the image's shorter side
TILT = 0.35  # radians either way, about 20 degrees: shapes stand upright, as most things do
MIN_VISIBLE_SHARE = 0.6
MIN_VISIBLE_AREA = 24  # pixels
MIN_VISIBLE_SIDE = 5  # pixels
MIN_CROWD = 6  # members left after occlusion
SUPERSAMPLE = 3
PAD = 2  # empty pixels around a shape in its patch


@dataclass(frozen=True)
class SceneObject:
    """What the annotations say of one object, or of one crowd."""

    label: int  # index into CLASSES
    mask: np.ndarray  # [H, W] bool, the visible part
    is_crowd: bool = False


@dataclass(frozen=True)
class _Shape:
    """A shape on its own square patch, whose first pixel is `corner` of the image."""

    label: int
    size: float  # pixels
    corner: tuple[int, int]  # (row, column)
    coverage: np.ndarray  # [P, P] in 0..1
    outline: np.ndarray | None  # [P, P] in 0..1
    in_crowd: bool = False


def draw_scene(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw an image of `height` x `width` pixels.

    Returns the image [H, W, 3] uint8 RGB, and its objects with their visible masks [H, W]. No
    two masks, that of a crowd included, share a pixel.
    """
    canvas = background(rng, height, width)
    shapes: list[_Shape] = []
    if rng.random() >= EMPTY_SHARE:
        shapes = _keep_visible(_plan(rng, height, width), height, width)
    owner = np.full((height, width), -1, np.int16)
    crowd_colors = shape_colors(rng, canvas.mean(axis=(0, 1)))
    for index, shape in enumerate(shapes):
        inside, of_patch = overlap(shape.corner, shape.coverage.shape, owner.shape)
        colors = crowd_colors
        if not shape.in_crowd:
            colors = shape_colors(rng, canvas[inside].mean(axis=(0, 1)))
        paint_shape(
            rng,
            canvas,
            shape.corner,
            shape.coverage,
            shape.outline,
            shape.size,
            colors,
        )
        owner[inside][shape.coverage[of_patch] > 0.5] = index
    return photograph(rng, canvas), _objects(shapes, owner)


def _plan(rng: np.random.Generator, height: int, width: int) -> list[_Shape]:
    """Shapes from the back to the front, some of which may be hidden."""
    plan = []
    if rng.random() < CROWD_SHARE:
        plan += _crowd(rng, height, width)
        count = int(rng.integers(1, 6))
    else:
        count = int(rng.choice(8, p=(0.08, 0.16, 0.20, 0.20, 0.15, 0.10, 0.07, 0.04))) + 1
    placed: list[tuple[float, float, float]] = []
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        if rng.random() < TINY_SHARE:
            size = rng.uniform(*TINY_SIZES)
        else:
            low, high = TINY_SIZES[1], LARGEST * min(height, width)
            size = low * (high / low) ** rng.beta(1.5, 1.2)
        row, column = _position(rng, size, placed, height, width)
        placed.append((row, column, size))
        plan.append(_make_shape(rng, label, size, row, column))
    return plan


def _position(
    rng: np.random.Generator,
    size: float,
    placed: list[tuple[float, float, float]],
    height: int,
    width: int,
) -> tuple[float, float]:
    """A centre: anywhere, a little over the border too, or leaning on an earlier shape."""
    margin = 0.3 * size
    if placed and rng.random() < 0.25:
        row, column, other = placed[int(rng.integers(len(placed)))]
        distance = rng.uniform(0.75, 1.05) * (size + other) / 2
        angle = rng.uniform(0, 2 * math.pi)
        row, column = (
            row + distance * math.sin(angle),
            column + distance * math.cos(angle),
        )
        return (
            float(np.clip(row, margin, height - margin)),
            float(np.clip(column, margin, width - margin)),
        )
    return rng.uniform(margin, height - margin), rng.uniform(margin, width - margin)


def _crowd(rng: np.random.Generator, height: int, width: int) -> list[_Shape]:
    """Many tiny shapes of one class on a shaken lattice inside an ellipse."""
    label = int(rng.integers(len(CLASSES)))
    size = rng.uniform(*CROWD_SIZES)
    pitch = size * rng.uniform(0.95, 1.2)
    semi = pitch * rng.uniform(2.4, 3.7, size=2)  # rows, columns
    centre = [
        rng.uniform(min(s, side / 2), max(side - s, side / 2))
        for s, side in zip(semi, (height, width), strict=True)
    ]
    members = []
    steps = np.arange(-4, 5) * pitch
    for row in steps:
        for column in steps:
            if (row / semi[0]) ** 2 + (column / semi[1]) ** 2 > 1:
                continue
            shaken = rng.uniform(-0.2, 0.2, size=2) * pitch
            members.append(
                _make_shape(
                    rng,
                    label,
                    size * rng.uniform(0.85, 1.15),
                    centre[0] + row + shaken[0],
                    centre[1] + column + shaken[1],
                    in_crowd=True,
                )
            )
    return members


def _keep_visible(plan: list[_Shape], height: int, width: int) -> list[_Shape]:
    """The shapes of `plan` of which enough is seen, walking from the front to the back."""
    hidden = np.zeros((height, width), bool)
    kept = []
    for shape in reversed(plan):
        mask = shape.coverage > 0.5
        inside, of_patch = overlap(shape.corner, mask.shape, hidden.shape)
        visible = mask[of_patch] & ~hidden[inside]
        area = int(visible.sum())
        if area < max(MIN_VISIBLE_SHARE * mask.sum(), MIN_VISIBLE_AREA):
            continue
        if min(visible.any(axis=0).sum(), visible.any(axis=1).sum()) < MIN_VISIBLE_SIDE:
            continue
        hidden[inside] |= mask[of_patch]
        kept.append(shape)
    if sum(shape.in_crowd for shape in kept) < MIN_CROWD:
        kept = [shape for shape in kept if not shape.in_crowd]
    return kept[::-1]


def _objects(shapes: list[_Shape], owner: np.ndarray) -> list[SceneObject]:
    """Annotations of what was painted; a crowd is one region that closes the gaps in it."""
    objects = [
        SceneObject(shape.label, owner == index)
        for index, shape in enumerate(shapes)
        if not shape.in_crowd
    ]
    members = [index for index, shape in enumerate(shapes) if shape.in_crowd]
    if members:
        region = Image.fromarray(np.isin(owner, members).astype(np.uint8) * 255)
        region = np.asarray(region.filter(ImageFilter.MaxFilter(5))) > 0
        region &= (owner == -1) | np.isin(owner, members)
        objects.append(SceneObject(shapes[members[0]].label, region, is_crowd=True))
    return objects


def _make_shape(
    rng: np.random.Generator,
    label: int,
    size: float,
    row: float,
    column: float,
    *,
    in_crowd: bool = False,
) -> _Shape:
    """Turn, stretch and rasterise a shape centred at (row, column)."""
    contours = _CONTOURS[CLASSES[label]](rng)
    angle, stretch = rng.uniform(-TILT, TILT), math.exp(rng.uniform(-0.16, 0.16))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * (stretch**0.5, stretch**-0.5)
    contours = [(points[:, :1] * turn[:, 0] + points[:, 1:] * turn[:, 1]) for points in contours]
    reach = size / 2 * max(float(np.abs(points).max()) for points in contours)
    top, left = math.floor(row - reach) - PAD, math.floor(column - reach) - PAD
    side = math.ceil(2 * reach) + 2 * PAD + 1
    scaled = [
        [
            tuple(point)
            for point in (points * (size / 2) + (column - left, row - top)) * SUPERSAMPLE - 0.5
        ]
        for points in contours
    ]
    large = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    pen = ImageDraw.Draw(large)
    for points, fill in zip(scaled, (255, 0), strict=False):
        pen.polygon(points, fill=fill)
    outline = None
    if size >= 16 and rng.random() < 0.3:
        lines = Image.new("L", large.size)
        pen = ImageDraw.Draw(lines)
        thickness = round(SUPERSAMPLE * rng.uniform(1.6, 2 + 0.08 * size))
        for points in scaled:
            pen.line([*points, *points[:2]], fill=255, width=thickness, joint="curve")
        outline = _as_coverage(lines)
    return _Shape(label, size, (top, left), _as_coverage(large), outline, in_crowd)


def _as_coverage(large: Image.Image) -> np.ndarray:
    """Average the supersampled mask down to pixels, in 0..1."""
    return np.asarray(large.reduce(SUPERSAMPLE), np.float32) / 255


# ---- contours: lists of points (x, y) around the origin, an outer one and at most one hole


def _polygon(corners: int, radius: float) -> np.ndarray:
    angles = (np.arange(corners) + 0.5) * (2 * math.pi / corners)
    return radius * np.stack((np.sin(angles), np.cos(angles)), axis=1)


def _circle(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(48, 1.0)]


def _square(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(4, 1.25)]


def _triangle(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(3, 1.3)]


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    points = _polygon(10, 1.25)
    points[::2] *= rng.uniform(0.4, 0.5)
    return [points]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(48, 1.0), _polygon(48, rng.uniform(0.5, 0.62))]


_CONTOURS: dict[str, Callable[[np.random.Generator], list[np.ndarray]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
}
