"""Image files of a dataset in COCO's format with something uncommon or wrong about each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.malformed_coco import HEIGHT, WIDTH, Document, document, scene


def _saved(mode: str, **options: Any) -> Callable[[Path], None]:
    """An image of some mode of Pillow's."""

    def save(path: Path) -> None:
        image = Image.fromarray(scene())
        if "A" in mode and mode != "LAB":
            image = image.convert("RGBA")
            alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
            image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        image.convert(mode).save(path, **options)

    return save


def _sixteen(path: Path, color: bool = False) -> None:
    ramp = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 6
    cv2.imwrite(str(path), np.stack([ramp, ramp // 2, ramp // 3], 2) if color else ramp)


def _turned(path: Path, orientation: int = 6) -> None:
    image = Image.fromarray(scene())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **(dict(lossless=True) if path.suffix == ".webp" else {}))


def _turned_late(path: Path) -> None:
    """A PNG file with the EXIF data behind the pixels, as its specification allows."""
    _turned(path)
    content = path.read_bytes()
    start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4
    exif, pixels, last = content[start:end], content[end:-12], content[-12:]
    path.write_bytes(content[:start] + pixels + exif + last)


def _turned_by_text(path: Path) -> None:
    """A PNG file with EXIF data as ImageMagick writes it, which OpenCV does not read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data, text = exif.tobytes(), PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.fromarray(scene()).save(path, pnginfo=text)


def _maxval(path: Path, maxval: int = 4095) -> None:
    values = np.linspace(0, maxval, HEIGHT * WIDTH).astype(">u2" if maxval > 255 else "u1")
    path.write_bytes(b"P5 %d %d %d\n" % (WIDTH, HEIGHT, maxval) + values.tobytes())


def _signed(path: Path) -> None:
    cv2.imwrite(str(path), np.linspace(-9, 9, HEIGHT * WIDTH).reshape(HEIGHT, -1).astype("i2"))


def _sixteen_with_alpha(path: Path) -> None:
    alpha = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    pixels = np.concatenate([scene() * 257.0, alpha], axis=2)
    cv2.imwrite(str(path), pixels.astype(np.uint16))


def _cut(keep: float) -> Callable[[Path], None]:
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


def _bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


def _lossless(path: Path) -> None:
    Image.fromarray(np.linspace(0, 255, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, -1)).save(
        path
    )


class ImageCase(NamedTuple):
    """An image file: how it is written, as what it is reported, how a run on it ends."""

    save: Callable[[Path], None]
    kind: str
    size: tuple[int, int] = (HEIGHT, WIDTH)  # that the annotations say
    stops: str | None = None  # what the error of a training says
    refused: str | None = None  # what the error of a prediction says
    off: int = 0  # by how much colors may differ between both
    decoded: bool = False  # only found by decoding


def _with_exif(data: bytes) -> Callable[[Path], None]:
    """With a resolution, so that Pillow does not look for one in the EXIF data."""
    return lambda path: Image.fromarray(scene()).save(path, exif=b"Exif\0\0" + data, dpi=(72, 72))


def _cut_frames(path: Path) -> None:
    frames = [Image.fromarray(scene()[:, :, channel]) for channel in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\x21\xf9\x04") + 12])  # amid the last one's place


CUT = r"1\.(png|jpg|tif|gif|tga) cannot be (decoded|read)"
STORED = "turned upright by EXIF.*84 x 112, annotated as 112 x 84"
IMAGE_CASES = {
    "gray.png": ImageCase(_saved("L"), "gray"),
    "gray.jpg": ImageCase(_saved("L"), "gray"),
    "one bit.png": ImageCase(_saved("1"), "gray"),
    "palette.png": ImageCase(_saved("P"), ""),
    "palette.bmp": ImageCase(_saved("P"), ""),
    "RGBA.png": ImageCase(_saved("RGBA"), "alpha"),
    "RGBA.tif": ImageCase(_saved("RGBA"), "alpha", off=1),
    "LA.png": ImageCase(_saved("LA"), "alpha"),
    "RGBA.webp": ImageCase(_saved("RGBA", lossless=True, exact=True), "alpha"),
    "CMYK.jpg": ImageCase(_saved("CMYK"), "CMYK", off=1),
    "CMYK.tif": ImageCase(_saved("CMYK"), "CMYK", off=1),
    "YCbCr.jpg": ImageCase(_saved("YCbCr"), ""),
    "Lab.tif": ImageCase(_saved("LAB"), "Lab", off=255),
    "16 bits.png": ImageCase(_sixteen, "16 bits"),
    "16 bits.tif": ImageCase(_sixteen, "16 bits"),
    "16 bits.pgm": ImageCase(_sixteen, "16 bits"),
    "16 bits in color.png": ImageCase(lambda path: _sixteen(path, True), ""),
    "16 bits with alpha.tif": ImageCase(_sixteen_with_alpha, "alpha", off=1),
    "12 bits.pgm": ImageCase(_maxval, "other maxval"),
    "up to 100.pgm": ImageCase(lambda path: _maxval(path, 100), "other maxval"),
    "signed.tif": ImageCase(_signed, "signed", stops="signed numbers"),
    "32 bits.tif": ImageCase(_lossless, "32 bits", stops="32 bits a channel"),
    "turned.jpg": ImageCase(_turned, "turned", (WIDTH, HEIGHT)),
    "turned.png": ImageCase(_turned, "turned", (WIDTH, HEIGHT)),
    "turned.tif": ImageCase(_turned, "turned", (WIDTH, HEIGHT)),
    "transposed.tif": ImageCase(lambda path: _turned(path, 5), "turned", (WIDTH, HEIGHT)),
    "turned.webp": ImageCase(_turned, "turned", (WIDTH, HEIGHT)),
    "turned behind the pixels.png": ImageCase(_turned_late, "turned", (WIDTH, HEIGHT)),
    "turned by a text.png": ImageCase(_turned_by_text, ""),
    "turned, annotated as stored.jpg": ImageCase(_turned, "stored size", stops=STORED),
    "turned, annotated as stored.tif": ImageCase(_turned, "stored size", stops=STORED),
    "turned late, annotated as stored.png": ImageCase(_turned_late, "stored size", stops=STORED),
    "upside down.jpg": ImageCase(lambda path: _turned(path, 3), "turned"),
    "EXIF of garbage.jpg": ImageCase(_with_exif(b"garbage!"), "damaged EXIF"),
    "EXIF of garbage.webp": ImageCase(_with_exif(b"garbage!"), "damaged EXIF", off=8),
    "EXIF truncated.jpg": ImageCase(_with_exif(b"II*\0"), "damaged EXIF"),
    "EXIF truncated.png": ImageCase(_with_exif(b"II*\0"), "damaged EXIF"),
    "cut between frames.gif": ImageCase(_cut_frames, "unreadable", stops=CUT),
    "larger.png": ImageCase(_sized(90, 112), "other size", stops=r"1\.png is not of the size"),
    "one pixel.png": ImageCase(_sized(1, 1), "small", (1, 1)),
    "one pixel.jpg": ImageCase(_sized(1, 1), "small", (1, 1)),
    "long.png": ImageCase(_sized(210, 20000), "", (210, 20000)),
    "thin.png": ImageCase(
        _sized(2, 20000), "thin", (2, 20000), stops="more than 100 times", refused="100 times"
    ),
    "bomb.png": ImageCase(
        _bomb, "too large", stops=r"1\.png cannot be read: Image size", refused="exceeds limit"
    ),
    "cut.jpg": ImageCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT),
    "cut.png": ImageCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT),
    "cut.tif": ImageCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT, decoded=True),
    "without its last bytes.jpg": ImageCase(_cut(2), "unreadable", stops=CUT, refused=CUT),
    "header alone.png": ImageCase(_cut(0.002), "unreadable", stops=CUT, refused=CUT),
    "bit flipped.png": ImageCase(
        _flipped_bit, "unreadable", stops=CUT, refused=CUT, decoded=True
    ),
    "empty.jpg": ImageCase(
        lambda path: path.write_bytes(b""), "unreadable", stops=CUT, refused=CUT
    ),
    "Targa.tga": ImageCase(_saved("RGB"), "unreadable", stops=f"{CUT}: OpenCV.* knows no TGA"),
    "packed by zstd.tif": ImageCase(_saved("RGB", compression="zstd"), "unreadable", stops=CUT),
    "EPS, which would start a program.jpg": ImageCase(
        _saved("RGB", format="EPS"), "unreadable", stops=CUT, refused=f"{CUT}: not an image"
    ),
    "text.jpg": ImageCase(
        lambda path: path.write_text("<html>not found</html>"), "unreadable", stops=CUT, refused=CUT
    ),
    "missing.png": ImageCase(
        lambda path: None, "missing", stops=r"1\.png does not exist", refused="cannot be read"
    ),
    "other case.png": ImageCase(
        lambda path: _sized(HEIGHT, WIDTH)(path.with_name("1.PNG")), "missing",
        stops=r"1\.png does not exist: there is '1\.PNG'", refused="cannot be read",
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
    box = [x, y, right - x, bottom - y]
    for one in content["annotations"][:2]:
        one.update(bbox=box, area=box[2] * box[3], segmentation=[polygon])
    return content
