"""Renders backgrounds, textured shapes and camera artifacts of the shapes dataset.

Canvases are float32 RGB [H, W, 3] in 0..255 and modified in place.
"""

import colorsys
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = np.ndarray  # [3] float32 in 0..255
Rng = np.random.Generator
TEXTURED_FROM = 18.0  # pixels; a pattern would hide the outline of a smaller shape


def background(rng: Rng, height: int, width: int) -> np.ndarray:
    """A canvas [H, W, 3] with a gradient, clouds, faint patterns, soft blobs and thin lines."""
    first, second = _background_color(rng), _background_color(rng)
    blend = _ramp(height, width, rng.uniform(0, 2 * math.pi))
    canvas = first + (second - first) * (blend * rng.uniform(0.2, 1.0))[..., None]
    cells = rng.integers(3, 12, 2).tolist()
    canvas += (rng.uniform(6, 26) * _cloud(rng, height, width, cells[0]))[..., None]
    tint = rng.uniform(2, 12)
    for channel in range(3):
        canvas[..., channel] += tint * _cloud(rng, height, width, cells[1])
    if rng.random() < 0.3:
        pattern = _stripes if rng.random() < 0.6 else _checks
        wave = pattern(*_rotated_grid(rng, height, width), 2 * math.pi / rng.uniform(6, 30))
        canvas += (wave * rng.uniform(-22, 22))[..., None]
    for _ in range(int(rng.integers(0, 4))):
        _add_blob(rng, canvas)
    _add_lines(rng, canvas, count=int(rng.integers(0, 7)))
    return np.clip(canvas, 0, 255)


def shape_colors(rng: Rng, behind: Color) -> tuple[Color, Color]:
    """Two colors for a texture that differ from the mean color behind the shape."""
    for _ in range(8):
        base = _hsv(rng.random(), rng.uniform(0.15, 1), rng.uniform(0.25, 1))
        if np.abs(base - behind).max() >= 100:
            break
    other = base + rng.uniform(-55, 55) + rng.uniform(-30, 30, 3).astype(np.float32)
    other = np.clip(other, 0, 255)
    if np.abs(other - behind).max() < 50:
        other = np.clip(2 * base - other, 0, 255)
    return base, other


def render_shape(
    rng: Rng,
    canvas: np.ndarray,
    corner: tuple[int, int],
    coverage: np.ndarray,
    outline: np.ndarray | None,
    size: float,
    colors: tuple[Color, Color],
) -> None:
    """Renders a textured shape whose patches [P, P] in 0..1 start at `corner`, (row, column)."""
    if rng.random() < 0.25:
        _add_shadow(rng, canvas, corner, coverage, size)
    base, other = colors
    surface = base + (other - base) * _texture(rng, coverage.shape[0], size)[..., None]
    if outline is not None:
        edge = other * 0.35 if base.mean() > 110 else 255 - (255 - other) * 0.35
        surface += (edge - surface) * outline[..., None]
    inside, of_patch = overlap(corner, coverage.shape, canvas.shape)
    target = canvas[inside]
    target += (surface[of_patch] - target) * coverage[of_patch][..., None]


def degrade(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Applies contrast, light, blur, noise and JPEG artifacts of a camera: uint8 [H, W, 3]."""
    height, width = canvas.shape[:2]
    canvas = (canvas - 128) * rng.uniform(0.75, 1.1) + 128 + rng.uniform(-16, 16)
    if rng.random() < 0.3:
        canvas *= 1 + rng.uniform(-0.35, 0.2) * _ramp(height, width, rng.uniform(0, 6.3))[..., None]
    if rng.random() < 0.25:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9))
        image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        canvas = np.asarray(image.filter(blur), np.float32)
    grain = rng.standard_normal((height, width, 3), np.float32)
    canvas = canvas + grain * np.float32(rng.uniform(2, 7))
    pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(45, 90)))
        pixels = np.asarray(Image.open(file))
    return pixels


def overlap(
    corner: tuple[int, int], patch: tuple[int, ...], image: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a patch at `corner` in the image, as slices of image and patch."""
    inside, of_patch = [], []
    for start, extent, side in zip(corner, patch, image):
        first, last = min(max(start, 0), side), min(max(start + extent, 0), side)
        inside.append(slice(first, last))
        of_patch.append(slice(first - start, last - start))
    return tuple(inside), tuple(of_patch)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def _background_color(rng: Rng) -> Color:
    return _hsv(rng.random(), rng.uniform(0, 0.55), rng.uniform(0.15, 0.95))


def _texture(rng: Rng, side: int, size: float) -> np.ndarray:
    """Share of the second color in each pixel of a shape's patch."""
    texture = int(rng.integers(6 if size >= TEXTURED_FROM else 3))
    if texture == 0:
        return np.zeros((side, side), np.float32)
    if texture == 1:
        return _ramp(side, side, rng.uniform(0, 2 * math.pi))
    if texture == 2:
        return 0.5 + 0.5 * _cloud(rng, side, side, max(2, min(side // 4, int(rng.integers(3, 9)))))
    frequency = 2 * math.pi / max(4.5, size / rng.uniform(2.5, 7))
    pattern = (_stripes, _checks, _dots)[texture - 3]
    return pattern(*_rotated_grid(rng, side, side), frequency)


def _rotated_grid(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along two axes rotated by a random angle, with a random origin."""
    angle = rng.uniform(0, 2 * math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(rng.uniform(0, 50))
    columns = np.arange(width, dtype=np.float32)[None] + np.float32(rng.uniform(0, 50))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return rows * cos + columns * sin, columns * cos - rows * sin


def _stripes(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    return np.clip(0.5 + 2 * np.sin(u * np.float32(frequency)), 0, 1)


def _checks(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    scale = np.float32(frequency * 0.7)
    return np.clip(0.5 + 4 * np.sin(u * scale) * np.sin(v * scale), 0, 1)


def _dots(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    scale = np.float32(frequency)
    return np.clip(2.5 * (np.cos(u * scale) + np.cos(v * scale) - 0.5), 0, 1)


def _ramp(height: int, width: int, angle: float) -> np.ndarray:
    """A linear gradient 0..1 along an angle in radians."""
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    cos, sin = math.cos(angle), math.sin(angle)
    slope = rows * np.float32(sin) + columns * np.float32(cos)
    return np.float32(0.5) + slope / np.float32(2 * (abs(cos) + abs(sin)))


def _cloud(rng: Rng, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise in -1..1 with about `cells` maxima along each axis."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), -1, 1)


def _add_shadow(
    rng: Rng, canvas: np.ndarray, corner: tuple[int, int], coverage: np.ndarray, size: float
) -> None:
    softness = max(1.0, 0.04 * size)
    pad = math.ceil(3 * softness)
    image = Image.fromarray(np.pad((coverage * 255).astype(np.uint8), pad))
    shadow = np.asarray(image.filter(ImageFilter.GaussianBlur(softness)), np.float32)
    offset = rng.uniform(0.04, 0.12, 2) * size * rng.choice((-1, 1), 2)
    corner = (corner[0] - pad + round(offset[0]), corner[1] - pad + round(offset[1]))
    inside, of_patch = overlap(corner, shadow.shape, canvas.shape)
    canvas[inside] *= 1 - shadow[of_patch][..., None] * np.float32(rng.uniform(0.3, 0.6) / 255)


def _add_blob(rng: Rng, canvas: np.ndarray) -> None:
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
    ImageDraw.Draw(spot).polygon(list(zip(x.tolist(), y.tolist())), fill=255)
    spot = spot.filter(ImageFilter.GaussianBlur(max(2.5, 0.25 * radius)))
    weight = np.asarray(spot, np.float32)[..., None] * np.float32(rng.uniform(0.3, 0.8) / 255)
    canvas += (_background_color(rng) - canvas) * weight


def _add_lines(rng: Rng, canvas: np.ndarray, count: int) -> None:
    """Thin lines, open arcs, zigzags and specks, up to the contrast that shapes have."""
    height, width = canvas.shape[:2]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        color = tuple(int(c) for c in _hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1)))
        thickness = int(rng.integers(1, 3))
        motif = int(rng.integers(4))
        if motif == 0:
            end = (rng.uniform(0, width), rng.uniform(0, height))
            draw.line([(column, row), end], fill=color, width=thickness)
        elif motif == 1:
            radius, start = rng.uniform(6, 0.3 * min(height, width)), rng.uniform(0, 360)
            box = (column - radius, row - radius, column + radius, row + radius)
            draw.arc(box, start, start + rng.uniform(40, 170), fill=color, width=thickness)
        elif motif == 2:
            steps = rng.uniform(-14, 14, (int(rng.integers(3, 7)), 2)).cumsum(axis=0)
            points = [(column + x, row + y) for x, y in steps.tolist()]
            draw.line(points, fill=color, width=thickness, joint="curve")
        else:
            for x, y in rng.uniform(-12, 12, (int(rng.integers(4, 12)), 2)).tolist():
                box = (column + x, row + y, column + x + 1, row + y + 1)
                draw.rectangle(box, fill=color)
    canvas[:] = np.asarray(image, np.float32)
