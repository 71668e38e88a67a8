"""Image files with one uncommon or malformed property each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from tests.malformed_coco import HEIGHT, WIDTH, Document, document, scene


class ImageCase(NamedTuple):
    """An image file: how to write it, the check that reports it, and how a run on it ends."""

    save: Callable[[Path], None]
    check: str = ""
    size: tuple[int, int] = (HEIGHT, WIDTH)  # in the annotations
    stops: str | None = None  # pattern of the training's error
    decoded: bool = False  # whether only decoding reveals it


def _saved(mode: str, **options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(scene())
        if "A" in mode:
            alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
            image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        image.convert(mode).save(path, **options)

    return save


def _sixteen_bits(path: Path) -> None:
    cv2.imwrite(str(path), (np.arange(HEIGHT * WIDTH) * 6).reshape(HEIGHT, WIDTH).astype("u2"))


def _rotated(orientation: int = 6) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(scene())
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)

    return save


def _corrupted_exif(path: Path) -> None:
    Image.fromarray(scene()).save(path, exif=b"Exif\0\0garbage!", dpi=(72, 72))


def _truncated(keep: float) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep) if keep < 1 else -int(keep)])

    return save


def _flipped_bit(path: Path) -> None:
    Image.fromarray(scene()).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def _sized(height: int, width: int) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(scene(height, width)).save(path)


UNREADABLE = r"1\.(png|jpg|tif) cannot be decoded"
STORED = "before its EXIF rotation.*84 x 112, annotated as 112 x 84"
IMAGE_CASES = {
    "gray.jpg": ImageCase(_saved("L")),
    "palette.png": ImageCase(_saved("P")),
    "RGBA.png": ImageCase(_saved("RGBA")),
    "RGBA.webp": ImageCase(_saved("RGBA", lossless=True, exact=True)),
    "16 bits.png": ImageCase(_sixteen_bits),
    "rotated.jpg": ImageCase(_rotated(), "rotated", (WIDTH, HEIGHT)),
    "upside down.jpg": ImageCase(_rotated(3), "rotated"),
    "unknown rotation.jpg": ImageCase(_rotated(0)),
    "annotated as stored.jpg": ImageCase(_rotated(), "stored size", stops=STORED),
    "corrupted EXIF.jpg": ImageCase(_corrupted_exif),
    "larger.png": ImageCase(_sized(90, 112), "other size", stops="112 x 90, annotated as 112 x 84"),
    "one pixel.png": ImageCase(_sized(1, 1), "small", (1, 1)),
    "truncated.jpg": ImageCase(_truncated(0.6), "unreadable", stops=UNREADABLE),
    "truncated.tif": ImageCase(_truncated(0.6), "unreadable", stops=UNREADABLE, decoded=True),
    "end missing.jpg": ImageCase(_truncated(2), "unreadable", stops=UNREADABLE),
    "flipped bit.png": ImageCase(_flipped_bit, "unreadable", stops=UNREADABLE, decoded=True),
    "empty.jpg": ImageCase(lambda path: path.touch(), "unreadable", stops=UNREADABLE),
    "EPS.jpg": ImageCase(_saved("RGB", format="EPS"), "unreadable", stops=UNREADABLE),
    "missing.png": ImageCase(lambda path: None, "missing", stops=r"1\.png is missing"),
    "other case.png": ImageCase(
        lambda path: _sized(HEIGHT, WIDTH)(path.with_name("1.PNG")), "missing",
        stops=r"is missing \(there is '1\.PNG'\)",
    ),
}  # fmt: skip


def with_image(name: str) -> Document:
    """The annotations of a case of `IMAGE_CASES`, whose file is the first image."""
    content = document()
    height, width = IMAGE_CASES[name].size
    image = content["images"][0]
    image.update(file_name=f"1{Path(name).suffix}", height=height, width=width)
    x, y = min(10, width - 1), min(12, height - 1)
    right, bottom = min(50, width), min(60, height)
    polygon = [x, y, right, y, right, bottom, x, bottom]
    for one in content["annotations"][:2]:
        box = [x, y, right - x, bottom - y]
        one.update(bbox=box, area=box[2] * box[3], segmentation=[polygon])
    return content
