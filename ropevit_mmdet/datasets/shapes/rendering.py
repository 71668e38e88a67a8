"""Colors, textures, grounds and camera faults for the images of the shapes dataset.

Canvases are float32 RGB [H, W, 3] in 0..255 and painted in place.
Nothing here knows classes or masks.
"""

import colorsys
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = np.ndarray  # [3] float32 in 0..255
TEXTURES = ("plain", "gradient", "cloud", "stripes", "checks", "dots")
TEXTURED_FROM = 18.0  # pixels; on smaller shapes a pattern would eat the shape


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A ground [H, W, 3] of a gradient, clouds, faint patterns, soft blobs and thin scribbles."""
    first, second = _ground_color(rng), _ground_color(rng)
    blend = _ramp(height, width, rng.uniform(0, 2 * math.pi))
    canvas = first + (second - first) * (blend * rng.uniform(0.2, 1.0))[..., None]
    cells = rng.integers(3, 12, 2).tolist()
    canvas += (rng.uniform(6, 26) * _cloud(rng, height, width, cells[0]))[..., None]
    tint = rng.uniform(2, 12)
    for channel in range(3):
        canvas[..., channel] += tint * _cloud(rng, height, width, cells[1])
    if rng.random() < 0.3:
        pattern = _stripes if rng.random() < 0.6 else _checks
        wave = pattern(*_turned_grid(rng, height, width), 2 * math.pi / rng.uniform(6, 30))
        canvas += (wave * rng.uniform(-22, 22))[..., None]
    for _ in range(int(rng.integers(0, 4))):
        _soft_blob(rng, canvas)
    _scribble(rng, canvas, count=int(rng.integers(0, 7)))
    return np.clip(canvas, 0, 255)


def shape_colors(rng: np.random.Generator, ground: Color) -> tuple[Color, Color]:
    """Two colors for a texture, both apart from the `ground` that they will lie on."""
    base = _apart(rng, ground, 100.0)
    other = base + rng.uniform(-55, 55) + rng.uniform(-30, 30, 3).astype(np.float32)
    other = np.clip(other, 0, 255)
    if np.abs(other - ground).max() < 50:
        other = np.clip(2 * base - other, 0, 255)
    return base, other


def paint_shape(
    rng: np.random.Generator,
    canvas: np.ndarray,
    corner: tuple[int, int],
    coverage: np.ndarray,
    outline: np.ndarray | None,
    size: float,
    colors: tuple[Color, Color],
) -> None:
    """Lay a textured shape on `canvas`.

    `coverage` and `outline` [P, P] are in 0..1, `corner` is the (row, column) of their first
    pixel in the image, `size` the shape's diameter in pixels.
    """
    if rng.random() < 0.25:
        _shadow(rng, canvas, corner, coverage, size)
    base, other = colors
    blend = _texture(rng, coverage.shape[0], size)
    surface = base + (other - base) * blend[..., None]
    if outline is not None:
        edge = other * 0.35 if base.mean() > 110 else 255 - (255 - other) * 0.35
        surface += (edge - surface) * outline[..., None]
    inside, of_patch = overlap(corner, coverage.shape, canvas.shape[:2])
    spot = canvas[inside]
    spot += (surface[of_patch] - spot) * coverage[of_patch][..., None]


def photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The image that a cheap camera takes of `canvas`: uint8 [H, W, 3]."""
    height, width = canvas.shape[:2]
    canvas = (canvas - 128) * rng.uniform(0.75, 1.1) + 128 + rng.uniform(-16, 16)
    if rng.random() < 0.3:
        canvas *= 1 + rng.uniform(-0.35, 0.2) * _ramp(height, width, rng.uniform(0, 6.3))[..., None]
    if rng.random() < 0.25:
        soft = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        canvas = np.asarray(
            soft.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9))), np.float32
        )
    grain = rng.standard_normal((height, width, 3), np.float32)
    canvas = canvas + grain * np.float32(rng.uniform(2, 7))
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(45, 90)))
        image = np.asarray(Image.open(file))
    return image


def overlap(
    corner: tuple[int, int], patch: tuple[int, ...], image: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a patch at `corner` that lies in the image, as slices of image and patch."""
    inside, of_patch = [], []
    for start, extent, side in zip(corner, patch, image, strict=True):
        first, last = min(max(start, 0), side), min(max(start + extent, 0), side)
        inside.append(slice(first, last))
        of_patch.append(slice(first - start, last - start))
    return (inside[0], inside[1]), (of_patch[0], of_patch[1])


# ---- colors


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def _ground_color(rng: np.random.Generator) -> Color:
    return _hsv(rng.random(), rng.uniform(0, 0.55), rng.uniform(0.15, 0.95))


def _apart(rng: np.random.Generator, ground: Color, distance: float) -> Color:
    """The first of a few colors that differs enough from `ground`, else the last."""
    for _ in range(8):
        color = _hsv(rng.random(), rng.uniform(0.15, 1), rng.uniform(0.25, 1))
        if np.abs(color - ground).max() >= distance:
            break
    return color


# ---- fields [height, width] in 0..1, unless said otherwise


def _texture(rng: np.random.Generator, side: int, size: float) -> np.ndarray:
    """How much of the second color each pixel of a shape's patch takes."""
    kind = TEXTURES[int(rng.integers(len(TEXTURES) if size >= TEXTURED_FROM else 3))]
    if kind == "plain":
        return np.zeros((side, side), np.float32)
    if kind == "gradient":
        return _ramp(side, side, rng.uniform(0, 2 * math.pi))
    if kind == "cloud":
        return 0.5 + 0.5 * _cloud(rng, side, side, max(2, min(side // 4, int(rng.integers(3, 9)))))
    frequency = 2 * math.pi / max(4.5, size / rng.uniform(2.5, 7))
    pattern = {"stripes": _stripes, "checks": _checks, "dots": _dots}[kind]
    return pattern(*_turned_grid(rng, side, side), frequency)


def _turned_grid(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along two axes turned by a random angle, with a random origin."""
    angle = rng.uniform(0, 2 * math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(rng.uniform(0, 50))
    columns = np.arange(width, dtype=np.float32)[None] + np.float32(rng.uniform(0, 50))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return rows * cos + columns * sin, columns * cos - rows * sin


def _stripes(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    return np.clip(0.5 + 2 * np.sin(u * np.float32(frequency)), 0, 1)


def _checks(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    frequency = np.float32(frequency * 0.7)
    return np.clip(0.5 + 4 * np.sin(u * frequency) * np.sin(v * frequency), 0, 1)


def _dots(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    frequency = np.float32(frequency)
    return np.clip(2.5 * (np.cos(u * frequency) + np.cos(v * frequency) - 0.5), 0, 1)


def _ramp(height: int, width: int, angle: float) -> np.ndarray:
    """A linear gradient along `angle`, radians."""
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    cos, sin = math.cos(angle), math.sin(angle)
    return np.float32(0.5) + (rows * np.float32(sin) + columns * np.float32(cos)) / np.float32(
        2 * (abs(cos) + abs(sin))
    )


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise in -1..1 with about `cells` hills along each axis."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), -1, 1)


# ---- things on the canvas that belong to no class


def _shadow(
    rng: np.random.Generator,
    canvas: np.ndarray,
    corner: tuple[int, int],
    coverage: np.ndarray,
    size: float,
) -> None:
    """Darken the canvas beside and below where the shape will lie."""
    softness = max(1.0, 0.04 * size)
    pad = math.ceil(3 * softness)
    cast = Image.fromarray(np.pad((coverage * 255).astype(np.uint8), pad))
    cast = np.asarray(cast.filter(ImageFilter.GaussianBlur(softness)), np.float32)
    drop = rng.uniform(0.04, 0.12, 2) * size * rng.choice((-1, 1), 2)
    corner = (corner[0] - pad + round(drop[0]), corner[1] - pad + round(drop[1]))
    inside, of_patch = overlap(corner, cast.shape, canvas.shape[:2])
    canvas[inside] *= 1 - cast[of_patch][..., None] * np.float32(rng.uniform(0.3, 0.6) / 255)


def _soft_blob(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """An irregular spot without an edge."""
    height, width = canvas.shape[:2]
    radius = rng.uniform(0.06, 0.2) * min(height, width)
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    reach = np.ones(40)
    for wave in (1, 2, 3):
        reach += rng.uniform(0, 0.3) * np.cos(wave * angles + rng.uniform(0, 2 * math.pi))
    x = rng.uniform(0, width) + radius * reach * np.cos(angles)
    y = rng.uniform(0, height) + radius * reach * np.sin(angles)
    spot = Image.new("L", (width, height))
    ImageDraw.Draw(spot).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    spot = spot.filter(ImageFilter.GaussianBlur(max(2.5, 0.25 * radius)))
    weight = np.asarray(spot, np.float32)[..., None] * np.float32(rng.uniform(0.3, 0.8) / 255)
    canvas += (_ground_color(rng) - canvas) * weight


def _scribble(rng: np.random.Generator, canvas: np.ndarray, count: int) -> None:
    """Thin lines, open arcs, zigzags and specks, up to the contrast that shapes have."""
    height, width = canvas.shape[:2]
    sheet = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(sheet)
    for _ in range(count):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        ink = tuple(int(c) for c in _hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1)))
        thickness = int(rng.integers(1, 3))
        kind = int(rng.integers(4))
        if kind == 0:
            end = (rng.uniform(0, width), rng.uniform(0, height))
            pen.line([(column, row), end], fill=ink, width=thickness)
        elif kind == 1:
            radius, start = (
                rng.uniform(6, 0.3 * min(height, width)),
                rng.uniform(0, 360),
            )
            box = (column - radius, row - radius, column + radius, row + radius)
            pen.arc(box, start, start + rng.uniform(40, 170), fill=ink, width=thickness)
        elif kind == 2:
            steps = rng.uniform(-14, 14, (int(rng.integers(3, 7)), 2)).cumsum(axis=0)
            points = [(column + x, row + y) for x, y in steps.tolist()]
            pen.line(points, fill=ink, width=thickness, joint="curve")
        else:
            for x, y in rng.uniform(-12, 12, (int(rng.integers(4, 12)), 2)).tolist():
                pen.rectangle((column + x, row + y, column + x + 1, row + y + 1), fill=ink)
    canvas[:] = np.asarray(sheet, np.float32)
