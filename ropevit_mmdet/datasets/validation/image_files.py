"""Checks image files against their annotations, by the header or by decoding them."""

import os
from pathlib import Path

import cv2

from ropevit_mmdet._images import exif_orientation, open_image, upright_size, why_unreadable
from ropevit_mmdet.datasets.validation.checks import CHECKS, ERROR

_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 64  # bytes that contain the end marker of most complete files


def check_image(
    path: Path, size: tuple[int, int] | None, *, decode: bool = False
) -> list[tuple[str, str]]:
    """Names and details of the checks that an image fails; `size` is (height, width).

    Without `decode` only files without an end marker are decoded, and of others the header is read.
    """
    try:
        with open_image(path) as image:
            orientation, upright = exif_orientation(image), upright_size(image)
            if decode or _seems_truncated(path, image.format or ""):
                image.load()
                if cv2.imread(str(path)) is None:
                    return [("unreadable", "OpenCV cannot decode it")]
    except FileNotFoundError:
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        similar = [name for name in names if name.casefold() == path.name.casefold()]
        return [("missing", f"there is {similar[0]!r}" if similar else "")]
    except Exception as error:  # Pillow's parsers raise many types
        return [("unreadable", why_unreadable(error))]
    findings = []
    text = f"{upright[1]} x {upright[0]}"
    if size is not None and size != upright:
        stored = orientation >= 5 and size == upright[::-1]
        check = "stored size" if stored else "other size"
        findings.append((check, f"{text}, annotated as {size[1]} x {size[0]}"))
    elif orientation != 1:
        findings.append(("rotated", f"EXIF orientation {orientation}"))
    if min(upright) < 32:
        findings.append(("small", text))
    return findings


def image_issue(path: Path, size: tuple[int, int], *, decode: bool = False) -> str | None:
    """Why training cannot use an image, in one line; None if it can. Arguments as `check_image`."""
    for name, details in check_image(path, size, decode=decode):
        if CHECKS[name].severity == ERROR:
            problem = CHECKS[name].message.removeprefix("image ")
            return f"image {path} {problem}" + (f" ({details})" if details else "")
    return None


def _seems_truncated(path: Path, image_format: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, path.stat().st_size), os.SEEK_END)
        return _ENDS.get(image_format, b"") not in file.read()
