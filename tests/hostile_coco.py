"""Data sets in COCO's format with one thing wrong each: annotations, or a picture file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

CLASSES = ("circle", "square", "triangle", "star", "ring")
HEIGHT, WIDTH = 84, 112  # of the sound pictures
NAN, INFINITY = float("nan"), float("inf")
Document = dict[str, Any]


class Case(NamedTuple):
    """One thing wrong: how it comes about, as what it is reported, how a training ends."""

    spoil: Callable[..., None]
    kind: str  # of trouble
    stops: str | None = None  # what the error of a training says; None: it trains


def document(pictures: int = 3) -> Document:
    """A sound annotation file: two objects in each picture, with polygons."""
    images, annotations = [], []
    for number in range(1, pictures + 1):
        images.append(dict(id=number, file_name=f"{number}.png", height=HEIGHT, width=WIDTH))
        for x, label in ((10, number % 5), (56, (number + 1) % 5)):
            polygon = [x, 12, x + 40, 12, x + 40, 60, x, 60]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=label + 1, iscrowd=0,
                     bbox=[x, 12, 40, 48], area=1920, segmentation=[polygon])
            )  # fmt: skip
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
    return dict(images=images, annotations=annotations, categories=categories)


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """RGB [H, W, 3], uint8: smooth in every channel, so that codecs lose little of it."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (255 * rows // height, 255 * columns // width, 255 - 255 * rows // height)
    return np.stack(channels, axis=2).astype(np.uint8)


def write(
    folder: Path, content: Document | str, spoil_picture: Callable[[Path], None] | None = None
) -> Path:
    """Write `annotations.json` and `pictures/`, the first picture spoilt; returns `folder`."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for image in document()["images"]:
        Image.fromarray(scene()).save(pictures / image["file_name"])
    if spoil_picture is not None:
        name = content["images"][0]["file_name"]
        (pictures / "1.png").unlink()
        spoil_picture(pictures / name)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "annotations.json").write_text(text, encoding="utf-8")
    return folder


def _first(**fields: Any) -> Callable[[Document], None]:
    """Other fields for the first annotation; None takes one away."""

    def spoil(content: Document) -> None:
        one = content["annotations"][0]
        one.update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del one[key]

    return spoil


def _without(part: str, key: str) -> Callable[[Document], None]:
    return lambda content: content[part][0].pop(key)


def _set(part: str, **fields: Any) -> Callable[[Document], None]:
    return lambda content: content[part][0].update(fields)


def _run_lengths(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[12:60, 10:50] = 1
    code = rle.encode(mask)
    return dict(size=code["size"], counts=code["counts"].decode())


SQUARE = [10, 12, 50, 12, 50, 60, 10, 60]
ANNOTATION_CASES = {
    "sound": Case(lambda content: None, ""),
    "no image id": Case(_without("images", "id"), "image fields", r"1\.png: no 'id'"),
    "no file name": Case(_without("images", "file_name"), "image fields", "image number 0"),
    "no height": Case(_without("images", "height"), "image fields", r"1\.png: no 'height'"),
    "negative width": Case(_set("images", width=-3), "image fields", r"1\.png: width -3"),
    "half a pixel": Case(_set("images", height=83.5), "image fields", r"1\.png: height 83\.5"),
    "name a number": Case(_set("images", file_name=7), "image fields", "file_name 7"),
    "an entry a number": Case(lambda c: c["images"].append(3), "image fields", "number 3: 3 is"),
    "a list as image id": Case(_set("images", id=[1]), "image fields", r"id \[1\]"),
    "image id twice": Case(_set("images", id=2), "image ids", r"2: 1\.png and 2\.png"),
    "file twice": Case(_set("images", file_name="2.png"), "file names"),
    "too many pixels": Case(
        _set("images", height=20000, width=20000), "too large", r"1\.png: 20000 x 20000"
    ),
    "category id twice": Case(_set("categories", id=2), "category ids", "2 2 times"),
    "category name twice": Case(_set("categories", name="square"), "category names", "several"),
    "no category name": Case(_without("categories", "name"), "category fields", "categor"),
    "category gaps": Case(
        lambda c: [
            one.update({key: one[key] * 10})
            for part, key in (("categories", "id"), ("annotations", "category_id"))
            for one in c[part]
        ],
        "category gaps",
    ),
    "one category more": Case(
        lambda c: (c["categories"].append(dict(id=6, name="more")), _first(category_id=6)(c)),
        "classes",
        "have 'more', with objects, beside the config's classes",
    ),
    "no bbox": Case(_first(bbox=None), "annotation fields", "annotation 1 of image 1: no 'bbox'"),
    "no area": Case(_first(area=None), "annotation fields", "no 'area'"),
    "no image of it": Case(_first(image_id=None), "annotation fields", "no 'image_id'"),
    "three numbers": Case(_first(bbox=[1, 2, 3]), "annotation fields", r"bbox \[1, 2, 3\]"),
    "numbers as text": Case(_first(bbox=["1", "2", "3", "4"]), "annotation fields", "bbox"),
    "a huge integer": Case(_first(bbox=[1, 2, 10**400, 4]), "annotation fields", "bbox"),
    "crowd as text": Case(_first(iscrowd="0"), "annotation fields", "iscrowd '0'"),
    "a list as id": Case(_first(category_id=[1]), "annotation fields", r"category_id \[1\]"),
    "annotation id twice": Case(_first(id=2), "annotation ids", "share an id"),
    "unknown image": Case(_first(image_id=99), "unknown images"),
    "unknown category": Case(_first(category_id=99), "unknown categories"),
    "NaN in a box": Case(_first(bbox=[NAN, 2, 30, 40]), "not finite", "annotation 1: bbox"),
    "infinite box": Case(_first(bbox=[1, 2, INFINITY, 40]), "not finite", "NaN or infinite"),
    "box of 1e30": Case(_first(bbox=[1, 2, 1e30, 40]), "not finite", "NaN or infinite"),
    "NaN as area": Case(_first(area=NAN), "not finite", "area nan"),
    "negative box": Case(_first(bbox=[50, 60, -40, -48]), "negative boxes"),
    "box of no width": Case(_first(bbox=[10, 12, 0, 48]), "empty boxes"),
    "area of zero": Case(_first(area=0), "empty boxes"),
    "box outside": Case(_first(bbox=[500, 500, 40, 48]), "boxes outside"),
    "box beyond": Case(_first(bbox=[-30, -30, 400, 400]), "boxes beyond"),
    "crowd": Case(_first(iscrowd=1, segmentation=_run_lengths()), "crowds"),
    "no segmentation": Case(_first(segmentation=None), "no masks", "annotation 1"),
    "empty segmentation": Case(_first(segmentation=[]), "no masks", "without a segmentation"),
    "flat list": Case(_first(segmentation=SQUARE), "bad masks", "neither lists"),
    "text in polygons": Case(_first(segmentation=[["a"] * 6]), "bad masks", "neither lists"),
    "two points": Case(_first(segmentation=[[10, 12, 50, 60]]), "short polygons"),
    "two points beside": Case(_first(segmentation=[[10, 12, 50, 60], SQUARE]), "short polygons"),
    "half a point": Case(_first(segmentation=[SQUARE[:7]]), "short polygons"),
    "NaN in a polygon": Case(
        _first(segmentation=[[10, NAN, *SQUARE[2:]]]), "wild polygons", "annotation 1"
    ),
    "far polygon": Case(_first(segmentation=[[10, 1e8, *SQUARE[2:]]]), "wild polygons", "outside"),
    "polygon of one point": Case(_first(segmentation=[[10, 12] * 4]), "flat polygons"),
    "run lengths": Case(_first(segmentation=_run_lengths()), ""),
    "run lengths of another size": Case(
        _first(segmentation=_run_lengths(80, 70)), "run lengths", r"size \[80, 70\]"
    ),
    "run lengths turned": Case(
        _first(segmentation=_run_lengths(WIDTH, HEIGHT)), "run lengths", r"picture has \[84, 112\]"
    ),
    "run lengths cut short": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[30, 40])), "run lengths", "70 of 94"
    ),
    "run lengths too long": Case(
        _first(segmentation=dict(_run_lengths(90, 130), size=[HEIGHT, WIDTH])),
        "run lengths",
        "11700 of 9408",
    ),  # fmt: skip
    "run lengths of garbage": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts="zz~~é")), "run lengths", "not run"
    ),
    "negative run lengths": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[30, -4, 9382])),
        "run lengths",
        "not run",
    ),  # fmt: skip
    "no counts": Case(_first(segmentation=dict(size=[HEIGHT, WIDTH])), "bad masks", "neither"),
    "no annotations": Case(lambda c: c["annotations"].clear(), "nothing to learn", "is left by"),
}


def _saved(mode: str, **options: Any) -> Callable[[Path], None]:
    """A picture of some mode of Pillow's."""

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
    image.save(path, exif=exif)


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


class PictureCase(NamedTuple):
    """A picture file: how it is written, as what it is reported, how a run on it ends."""

    save: Callable[[Path], None]
    kind: str
    size: tuple[int, int] = (HEIGHT, WIDTH)  # that the annotations say
    stops: str | None = None  # what the error of a training says
    refused: str | None = None  # what the error of a prediction says
    off: int = 0  # by how much colours may differ between both
    decoded: bool = False  # only found by decoding


def _with_exif(data: bytes) -> Callable[[Path], None]:
    """With a resolution, so that Pillow does not look for one in the EXIF data."""
    return lambda path: Image.fromarray(scene()).save(path, exif=b"Exif\0\0" + data, dpi=(72, 72))


def _cut_frames(path: Path) -> None:
    frames = [Image.fromarray(scene()[:, :, channel]) for channel in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\x21\xf9\x04") + 12])  # amid the last one's place


CUT = r"1\.(png|jpg|tif|gif) cannot be (decoded|read)"
PICTURE_CASES = {
    "gray.png": PictureCase(_saved("L"), "gray"),
    "gray.jpg": PictureCase(_saved("L"), "gray"),
    "one bit.png": PictureCase(_saved("1"), "gray"),
    "palette.png": PictureCase(_saved("P"), ""),
    "palette.bmp": PictureCase(_saved("P"), ""),
    "RGBA.png": PictureCase(_saved("RGBA"), "alpha"),
    "RGBA.tif": PictureCase(_saved("RGBA"), "alpha", off=1),
    "LA.png": PictureCase(_saved("LA"), "alpha"),
    "RGBA.webp": PictureCase(_saved("RGBA", lossless=True, exact=True), "alpha"),
    "CMYK.jpg": PictureCase(_saved("CMYK"), "CMYK", off=1),
    "CMYK.tif": PictureCase(_saved("CMYK"), "CMYK", off=1),
    "YCbCr.jpg": PictureCase(_saved("YCbCr"), ""),
    "Lab.tif": PictureCase(_saved("LAB"), "Lab", off=255),
    "16 bits.png": PictureCase(_sixteen, "16 bits"),
    "16 bits.tif": PictureCase(_sixteen, "16 bits"),
    "16 bits.pgm": PictureCase(_sixteen, "16 bits"),
    "16 bits in colour.png": PictureCase(lambda path: _sixteen(path, True), ""),
    "32 bits.tif": PictureCase(_lossless, "32 bits", stops="32 bits a channel"),
    "turned.jpg": PictureCase(_turned, "turned", (WIDTH, HEIGHT)),
    "turned.png": PictureCase(_turned, "turned", (WIDTH, HEIGHT)),
    "turned, annotated as stored.jpg": PictureCase(
        _turned, "stored size", stops=r"turned upright by EXIF.*84 x 112, annotated as 112 x 84"
    ),
    "upside down.jpg": PictureCase(lambda path: _turned(path, 3), "turned"),
    "EXIF of garbage.jpg": PictureCase(_with_exif(b"garbage!"), "damaged EXIF"),
    "EXIF of garbage.webp": PictureCase(_with_exif(b"garbage!"), "damaged EXIF", off=8),
    "EXIF cut short.jpg": PictureCase(_with_exif(b"II*\0"), "damaged EXIF"),
    "EXIF cut short.png": PictureCase(_with_exif(b"II*\0"), "damaged EXIF"),
    "cut between frames.gif": PictureCase(_cut_frames, "unreadable", stops=CUT),
    "larger.png": PictureCase(_sized(90, 112), "other size", stops=r"1\.png is not of the size"),
    "one pixel.png": PictureCase(_sized(1, 1), "small", (1, 1)),
    "one pixel.jpg": PictureCase(_sized(1, 1), "small", (1, 1)),
    "long.png": PictureCase(_sized(210, 20000), "", (210, 20000)),
    "thin.png": PictureCase(
        _sized(2, 20000), "thin", (2, 20000), stops="more than 100 times", refused="100 times"
    ),
    "bomb.png": PictureCase(
        _bomb, "too large", stops=r"1\.png cannot be read: Image size", refused="exceeds limit"
    ),
    "cut.jpg": PictureCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT),
    "cut.png": PictureCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT),
    "cut.tif": PictureCase(_cut(0.6), "unreadable", stops=CUT, refused=CUT, decoded=True),
    "without its last bytes.jpg": PictureCase(_cut(2), "unreadable", stops=CUT, refused=CUT),
    "header alone.png": PictureCase(_cut(0.002), "unreadable", stops=CUT, refused=CUT),
    "bit flipped.png": PictureCase(
        _flipped_bit, "unreadable", stops=CUT, refused=CUT, decoded=True
    ),
    "empty.jpg": PictureCase(
        lambda path: path.write_bytes(b""), "unreadable", stops=CUT, refused=CUT
    ),
    "text.jpg": PictureCase(
        lambda path: path.write_text("<html>not found</html>"), "unreadable", stops=CUT, refused=CUT
    ),
    "missing.png": PictureCase(
        lambda path: None, "missing", stops=r"1\.png does not exist", refused="cannot be read"
    ),
    "other case.png": PictureCase(
        lambda path: _sized(HEIGHT, WIDTH)(path.with_name("1.PNG")), "missing",
        stops=r"1\.png does not exist: there is '1\.PNG'", refused="cannot be read",
    ),
}  # fmt: skip


def with_picture(name: str) -> Document:
    """The annotations of a case of `PICTURE_CASES`, whose file is the first picture."""
    content = document()
    height, width = PICTURE_CASES[name].size
    image = content["images"][0]
    image.update(file_name=f"1{Path(name).suffix}", height=height, width=width)
    x, y = min(10, width - 1), min(12, height - 1)
    right, bottom = min(50, width), min(60, height)
    polygon = [x, y, right, y, right, bottom, x, bottom]
    box = [x, y, right - x, bottom - y]
    for one in content["annotations"][:2]:
        one.update(bbox=box, area=box[2] * box[3], segmentation=[polygon])
    return content
