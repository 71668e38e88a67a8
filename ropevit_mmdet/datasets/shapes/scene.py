"""Renders one image of the shapes dataset: overlapping shapes on a cluttered background."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ropevit_mmdet.datasets.shapes.rendering import (
    Rng,
    background,
    degrade,
    overlap,
    render_shape,
    shape_colors,
)

CLASSES = ("circle", "square", "triangle", "star", "ring")
MIN_SIDE = 64  # pixels; a smaller image does not fit shapes of several sizes

EMPTY_SHARE = 0.04  # of the images
CROWD_SHARE = 0.10  # of the images that are not empty
TINY_SHARE = 0.10  # of the objects
TINY_SIZES = (12.0, 24.0)  # pixels
CROWD_SIZES = (8.0, 13.0)  # pixels
MAX_SIZE = 0.58  # of the image's shorter side
TILT = 0.35  # radians either way, about 20 degrees
MIN_VISIBLE_SHARE = 0.6
MIN_VISIBLE_AREA = 24  # pixels
MIN_VISIBLE_SIDE = 5  # pixels
MIN_CROWD = 6  # members after occlusion
SUPERSAMPLE = 3
PAD = 2  # empty pixels around a shape in its patch


@dataclass(frozen=True)
class SceneObject:
    """One annotated object or crowd: class index, visible mask [H, W], whether it is a crowd."""

    label: int
    mask: np.ndarray
    is_crowd: bool = False


@dataclass(frozen=True)
class _Shape:
    """A shape on its own square patch, whose first pixel is at `corner` of the image."""

    label: int
    size: float  # pixels
    corner: tuple[int, int]  # (row, column)
    coverage: np.ndarray  # [P, P] in 0..1
    outline: np.ndarray | None  # [P, P] in 0..1
    in_crowd: bool = False


def draw_scene(rng: Rng, height: int, width: int) -> tuple[np.ndarray, list[SceneObject]]:
    """Renders an RGB image [H, W, 3], uint8, and its objects, whose masks share no pixel."""
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
        patch = shape.coverage, shape.outline
        render_shape(rng, canvas, shape.corner, *patch, shape.size, colors)
        owner[inside][shape.coverage[of_patch] > 0.5] = index
    return degrade(rng, canvas), _objects(shapes, owner)


def _plan(rng: Rng, height: int, width: int) -> list[_Shape]:
    """Shapes from back to front, some of which may be hidden."""
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
            low, high = TINY_SIZES[1], MAX_SIZE * min(height, width)
            size = low * (high / low) ** rng.beta(1.5, 1.2)
        row, column = _position(rng, size, placed, height, width)
        placed.append((row, column, size))
        plan.append(_make_shape(rng, label, size, row, column))
    return plan


def _position(
    rng: Rng, size: float, placed: list[tuple[float, float, float]], height: int, width: int
) -> tuple[float, float]:
    """A centre (row, column), slightly across the border too, or close to an earlier shape."""
    margin = 0.3 * size
    if not placed or rng.random() >= 0.25:
        return rng.uniform(margin, height - margin), rng.uniform(margin, width - margin)
    row, column, other = placed[int(rng.integers(len(placed)))]
    distance = rng.uniform(0.75, 1.05) * (size + other) / 2
    angle = rng.uniform(0, 2 * math.pi)
    row += distance * math.sin(angle)
    column += distance * math.cos(angle)
    row, column = np.clip((row, column), margin, (height - margin, width - margin)).tolist()
    return row, column


def _crowd(rng: Rng, height: int, width: int) -> list[_Shape]:
    """Many tiny shapes of one class on a jittered lattice inside an ellipse."""
    label = int(rng.integers(len(CLASSES)))
    size = rng.uniform(*CROWD_SIZES)
    pitch = size * rng.uniform(0.95, 1.2)
    semi = pitch * rng.uniform(2.4, 3.7, size=2)  # rows, columns
    top, left = (
        rng.uniform(min(s, side / 2), max(side - s, side / 2))
        for s, side in zip(semi, (height, width))
    )
    members = []
    steps = np.arange(-4, 5) * pitch
    for row in steps:
        for column in steps:
            if (row / semi[0]) ** 2 + (column / semi[1]) ** 2 <= 1:
                jitter = rng.uniform(-0.2, 0.2, size=2) * pitch
                place = top + row + jitter[0], left + column + jitter[1]
                member = size * rng.uniform(0.85, 1.15)
                members.append(_make_shape(rng, label, member, *place, in_crowd=True))
    return members


def _keep_visible(plan: list[_Shape], height: int, width: int) -> list[_Shape]:
    """The shapes of `plan` that are sufficiently visible, from back to front."""
    hidden = np.zeros((height, width), bool)
    kept = []
    for shape in reversed(plan):
        mask = shape.coverage > 0.5
        inside, of_patch = overlap(shape.corner, mask.shape, hidden.shape)
        visible = mask[of_patch] & ~hidden[inside]
        if int(visible.sum()) < max(MIN_VISIBLE_SHARE * mask.sum(), MIN_VISIBLE_AREA):
            continue
        if min(visible.any(axis=0).sum(), visible.any(axis=1).sum()) < MIN_VISIBLE_SIDE:
            continue
        hidden[inside] |= mask[of_patch]
        kept.append(shape)
    if sum(shape.in_crowd for shape in kept) < MIN_CROWD:
        kept = [shape for shape in kept if not shape.in_crowd]
    return kept[::-1]


def _objects(shapes: list[_Shape], owner: np.ndarray) -> list[SceneObject]:
    """Annotations of the rendered shapes; a crowd is one region without gaps."""
    objects, members = [], []
    for index, shape in enumerate(shapes):
        if shape.in_crowd:
            members.append(index)
        else:
            objects.append(SceneObject(shape.label, owner == index))
    if members:
        own = np.isin(owner, members)
        grown = Image.fromarray(own.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(5))
        region = (np.asarray(grown) > 0) & ((owner == -1) | own)
        objects.append(SceneObject(shapes[members[0]].label, region, is_crowd=True))
    return objects


def _make_shape(
    rng: Rng, label: int, size: float, row: float, column: float, *, in_crowd: bool = False
) -> _Shape:
    """Rotates, stretches and rasterizes a shape centred at (row, column)."""
    contours = _contours(rng, CLASSES[label])
    angle, stretch = rng.uniform(-TILT, TILT), math.exp(rng.uniform(-0.16, 0.16))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) * (stretch**0.5, stretch**-0.5)
    contours = [points[:, :1] * matrix[:, 0] + points[:, 1:] * matrix[:, 1] for points in contours]
    reach = size / 2 * max(float(np.abs(points).max()) for points in contours)
    top, left = math.floor(row - reach) - PAD, math.floor(column - reach) - PAD
    side = math.ceil(2 * reach) + 2 * PAD + 1
    centre = np.array((column - left, row - top))
    polygons = [
        list(map(tuple, (points * (size / 2) + centre) * SUPERSAMPLE - 0.5)) for points in contours
    ]
    large = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    for points, fill in zip(polygons, (255, 0)):
        ImageDraw.Draw(large).polygon(points, fill=fill)
    outline = None
    if size >= 16 and rng.random() < 0.3:
        lines = Image.new("L", large.size)
        thickness = round(SUPERSAMPLE * rng.uniform(1.6, 2 + 0.08 * size))
        for points in polygons:
            line = [*points, *points[:2]]
            ImageDraw.Draw(lines).line(line, fill=255, width=thickness, joint="curve")
        outline = _as_coverage(lines)
    return _Shape(label, size, (top, left), _as_coverage(large), outline, in_crowd)


def _as_coverage(large: Image.Image) -> np.ndarray:
    """A supersampled mask averaged to pixels, in 0..1."""
    return np.asarray(large.reduce(SUPERSAMPLE), np.float32) / 255


def _contours(rng: Rng, name: str) -> list[np.ndarray]:
    """The outer contour of a class around the origin, points (x, y), and of a ring its hole."""
    if name == "ring":
        return [_polygon(48, 1.0), _polygon(48, rng.uniform(0.5, 0.62))]
    if name == "star":
        points = _polygon(10, 1.25)
        points[::2] *= rng.uniform(0.4, 0.5)
        return [points]
    corners, radius = {"circle": (48, 1.0), "square": (4, 1.25), "triangle": (3, 1.3)}[name]
    return [_polygon(corners, radius)]


def _polygon(corners: int, radius: float) -> np.ndarray:
    angles = (np.arange(corners) + 0.5) * (2 * math.pi / corners)
    return radius * np.stack((np.sin(angles), np.cos(angles)), axis=1)
