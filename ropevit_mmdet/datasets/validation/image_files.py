"""Check an image file against what its annotations say of it, by its header or by decoding it."""

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
from PIL import ExifTags, Image

from ropevit_mmdet._images import (
    MAX_PIXELS,
    exif_orientation,
    odd_maxval,
    open_image,
    read_image,
    why_unreadable,
)
from ropevit_mmdet.datasets.validation.findings import ERROR, NOTE, WARNING, Kind

THINNEST = 100
KINDS = {
    "missing": Kind(ERROR, "image files that are not there"),
    "unreadable": Kind(ERROR, "image files that cannot be decoded"),
    "too large": Kind(
        ERROR, f"images of more than {MAX_PIXELS:,} pixels, which are not read: cut them up"
    ),
    "32 bits": Kind(ERROR, "images of 32 bits a channel, which OpenCV does not read: convert them"),
    "signed": Kind(
        ERROR, "TIFF images of signed numbers, of which OpenCV makes the negative ones bright"
    ),
    "other size": Kind(ERROR, "images of another size than their annotations say"),
    "stored size": Kind(
        ERROR,
        "annotations with the size of the image as it is stored, while EXIF turns it: boxes "
        "must lie on the upright image, which is what a detector sees",
    ),
    "thin": Kind(
        ERROR,
        f"images more than {THINNEST} times as long as wide: made smaller, they have no pixel left",
    ),
    "turned": Kind(WARNING, "images turned by EXIF: boxes must lie on the upright image"),
    "Lab": Kind(WARNING, "Lab images: training and prediction see other colors: convert them"),
    "other maxval": Kind(
        WARNING,
        "PGM and PPM images whose highest value is neither 255 nor 65535: a detector sees them "
        "darker than other programs show them",
    ),
    "several frames": Kind(WARNING, "files of several images: only the first one is seen"),
    "small": Kind(WARNING, "images less than 32 pixels wide or high: configs for COCO skip them"),
    "damaged EXIF": Kind(NOTE, "images with damaged EXIF data: taken for upright"),
    "gray": Kind(NOTE, "gray images: fine, all three channels are the same"),
    "16 bits": Kind(NOTE, "images of 16 bits a channel: fine, the upper 8 are seen"),
    "alpha": Kind(NOTE, "images with transparency: what is under it is seen, black in most TIFF"),
    "CMYK": Kind(NOTE, "CMYK images: fine, made RGB without a color profile"),
}
_OF_ONE = {  # the errors, said of one image
    "missing": "does not exist",
    "unreadable": "cannot be decoded",
    "too large": "cannot be read",
    "32 bits": "has 32 bits a channel, which OpenCV does not read",
    "signed": "has signed numbers, of which OpenCV makes the negative ones bright",
    "other size": "is not of the size that its annotations say",
    "thin": f"is more than {THINNEST} times as long as wide",
    "stored size": "is turned upright by EXIF, and its annotations have the size from before",
}
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations of which height and width are those of the other side
_SIGNED = "I;16S"  # no mode of Pillow's, which calls it I as it does 32 bits
_MODES = {"I": "32 bits", "F": "32 bits", "L": "gray", "1": "gray", "CMYK": "CMYK", "LAB": "Lab"}
_MODES[_SIGNED] = "signed"
_MODES |= dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), "16 bits")
_MODES |= dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha")
# What every OpenCV reads: of other formats it is asked, and TIFF packed in a rare way is tried.
_COMMON = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "PPM")
_RARELY_READ = ("zstd", "lzma", "webp")  # compressions of TIFF files
_BITS = 258  # tag of a TIFF file: of each sample
_MOST_EXIF = 1 << 20  # bytes
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 64  # bytes at the end in which a whole file has its end mark, mostly


class _Header(NamedTuple):
    """What a file says of its image, `stored` and `upright` as (height, width) in pixels."""

    format: str
    mode: str
    stored: tuple[int, int]
    orientation: int | None  # None: damaged
    frames: int
    maxval: int | None  # of a PGM or PPM file, where it is odd
    rarely_read: bool  # by OpenCV: a TIFF file packed in a rare way

    @property
    def upright(self) -> tuple[int, int]:
        return self.stored[::-1] if self.orientation in _SWAPPED else self.stored


def check_image(
    path: str | os.PathLike[str], size: tuple[int, int] | None, *, decode: bool = False
) -> list[tuple[str, str]]:
    """The kinds of finding of an image file, each with what more there is to say, or "".

    Only the header is read, unless the end of the file is missing or `decode` says so; then it is
    decoded as training does, and as prediction does.

    Args:
        size: (height, width) in pixels that the annotations give it; None: not compared.
    """
    path = Path(path)
    try:
        if not path.is_file():
            near = _near_name(path)
            return [("missing", f"there is {near!r}" if near else "")]
        header = _read_header(path)
        known = header.format in _COMMON or cv2.haveImageReader(str(path))
        decode = decode or header.rarely_read or _seems_cut(path, header.format)
    except Image.DecompressionBombError as error:
        return [("too large", str(error))]
    except Exception as error:  # the name may be too long, and Pillow's parsers meet any bytes
        return [("unreadable", why_unreadable(error))]
    found = list(_of_header(header, size))
    if not known:
        found.append(("unreadable", f"OpenCV, by which training reads, knows no {header.format}"))
    elif decode:
        said = _undecodable(path)
        if said and all(kind != "32 bits" for kind, _ in found):
            found.append(("unreadable", said))
    return found


def image_error(
    path: str | os.PathLike[str], size: tuple[int, int] | None, *, decode: bool = False
) -> str | None:
    """Why an image cannot be trained on, in one line that names it; None if it can.

    Arguments as for `check_image`.
    """
    for kind, said in check_image(path, size, decode=decode):
        if kind in _OF_ONE:
            return f"image {path} {_OF_ONE[kind]}" + (f": {said}" if said else "")
    return None


def _of_header(header: _Header, size: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    height, width = header.upright
    turned = header.orientation not in (1, None)
    if size is not None and size != header.upright:
        kind = "stored size" if turned and size == header.stored else "other size"
        yield kind, f"{width} x {height}, annotated as {size[1]} x {size[0]}"
    elif turned:
        yield "turned", f"EXIF orientation {header.orientation}"
    if max(header.upright) > THINNEST * min(header.upright):
        yield "thin", f"{width} x {height}"
    elif min(header.upright) < 32:
        yield "small", f"{width} x {height}"
    if header.orientation is None:
        yield "damaged EXIF", ""
    if header.frames > 1:
        yield "several frames", str(header.frames)
    kind = _MODES.get(header.mode)
    if header.mode == "I" and header.format in ("PPM", "PNG"):
        kind = "16 bits"
    if header.maxval:
        yield "other maxval", str(header.maxval)
    elif kind:
        yield kind, ""


def _read_header(path: Path) -> _Header:
    with open_image(path) as image:
        kind, mode, (width, height) = image.format or "", image.mode, image.size
        rarely_read = False
        if kind == "PNG" and "exif" not in image.info:
            image.info["exif"] = _late_exif(path)  # Pillow would decode all pixels in search of it
        if kind == "TIFF":
            tags = image.tag_v2
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
            rarely_read = image.info.get("compression") in _RARELY_READ
            mode = _SIGNED if mode == "I" and tags.get(_BITS) == (16,) else mode
        orientation, maxval, frames = exif_orientation(image), odd_maxval(image), 1
        if kind in ("GIF", "MPO", "PNG", "TIFF", "WEBP"):
            frames = getattr(image, "n_frames", 1)
        return _Header(kind, mode, (height, width), orientation, frames, maxval, rarely_read)


def _late_exif(path: Path) -> bytes:
    """The EXIF data of a PNG file, whose chunk may stand behind the pixels; empty without one."""
    with open(path, "rb", buffering=0) as file:
        place = 8  # behind the signature
        while True:
            file.seek(place)
            start = file.read(8)
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind == b"eXIf":
                return b"Exif\0\0" + file.read(min(length, _MOST_EXIF))
            if kind == b"IEND" or not kind.isalpha():
                return b""
            place += length + 12  # length, kind and checksum


def _seems_cut(path: Path, kind: str) -> bool:
    if kind not in _ENDS:
        return False
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, path.stat().st_size), os.SEEK_END)
        return _ENDS[kind] not in file.read()


def _undecodable(path: Path) -> str | None:
    """Why training or prediction cannot decode an image; None if both can."""
    try:
        read_image(path)
        decoded = mmcv.imfrombytes(path.read_bytes()) is not None
    except ValueError as error:
        return str(error).partition("cannot be read: ")[2] or str(error)
    except cv2.error:
        decoded = False
    return None if decoded else "OpenCV cannot decode it"


def _near_name(path: Path) -> str | None:
    """The name of a file that is there and differs in case or in the form of its accents."""
    return _names(path.parent).get(_folded(path.name))


@lru_cache(maxsize=16)
def _names(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        return {}
    return {_folded(name): name for name in os.listdir(directory)}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
