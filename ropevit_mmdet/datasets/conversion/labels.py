"""Labels of an image, whatever their format, and where its file is."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import cv2
import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet._images import SUFFIXES, open_image, upright_size, why_unreadable
from ropevit_mmdet.errors import UserError

_SPLITS = {"train": "train", "training": "train", "trainval": "train", "val": "val"}
_SPLITS |= {"valid": "val", "validation": "val", "test": "test", "testing": "test"}
_MASK_DIRECTORIES = ("SegmentationObject", "SegmentationClass")  # of VOC


class Labels(NamedTuple):
    """The objects of an image, as `annotation` returns them."""

    split: str
    image: Path
    objects: list[dict[str, Any]]
    size: tuple[int, int] | None = None  # height and width that the label file states


class ImageIndex:
    """The image files below a directory, for label files that name them."""

    def __init__(self, root: Path) -> None:
        self.root, self.reading = root, root  # the second: the label file that a reader is at
        self.missing, self.classes = list[str](), list[str]()
        self.skipped = Counter[str]()  # what is not converted
        files = find_files(root, *SUFFIXES)
        self.files = [path for path in files if path.parent.name not in _MASK_DIRECTORIES]
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.files:
            self._by_stem.setdefault(_key(path.stem), []).append(path)

    def find(self, label: Path, name: str = "") -> Path | None:
        """The image of a label file: of the same name, else named in it; adds to `missing` if None.

        The name inside is often that of before a renaming.
        """
        named = Path(name.replace("\\", "/"))
        exact, split = os.path.normpath(label.parent / named), split_of(label.parent)
        paths = self.of_stem(label.stem) or self.of_stem(named.stem)

        def score(path: Path) -> tuple[Any, ...]:
            of_name, of_label = (_common_end(path.parent, one.parent) for one in (named, label))
            own = split_of(path.parent) == split
            return str(path) == exact, path.name == named.name, of_name, own, of_label

        highest = max(map(score, paths), default=None)
        best = [path for path in paths if score(path) == highest]
        if len(best) == 1:
            return best[0]
        self.missing.append(f"{label} ({len(best)} images of this name)" if best else str(label))
        return None

    def of_stem(self, stem: str) -> list[Path]:
        """The images of a name without suffix; case and form of its letters do not count."""
        return self._by_stem.get(_key(stem), [])


def annotation(name: Any, box: Sequence[float] | None = None, **shape: Any) -> dict[str, Any]:
    """A COCO annotation with a class name in place of ids; arguments as `object_fields`."""
    return {"name": str(name).strip(), **object_fields(box, **shape)}


def object_fields(
    box: Sequence[float] | None = None,
    *,
    polygons: Sequence[Sequence[float]] = (),
    mask: np.ndarray | None = None,
    crowd: bool = False,
) -> dict[str, Any]:
    """The fields of a COCO annotation that are no ids; lengths are in pixels.

    `box` is (x, y, width, height), by default that of the mask [H, W] or of polygons [x, y, ...].
    """
    fields: dict[str, Any] = {"iscrowd": int(crowd)}
    if mask is not None:
        code = rle.encode(np.asfortranarray(mask, np.uint8))
        fields |= {"segmentation": code | {"counts": code["counts"].decode()}}
        area, around = number(rle.area(code)), rle.toBbox(code)
    elif polygons:
        fields["segmentation"] = [list(map(number, polygon)) for polygon in polygons]
        contours = [np.array(polygon).reshape(-1, 2) for polygon in fields["segmentation"]]
        area = sum(cv2.contourArea(points.astype(np.float32)) for points in contours)
        low, high = (pick(np.concatenate(contours), axis=0) for pick in (np.min, np.max))
        around = (*low, *(high - low))
    elif box is not None:
        area, around = box[2] * box[3], box
    return fields | {"bbox": list(map(number, around if box is None else box)), "area": area}


def find_files(root: Path, *suffixes: str) -> list[Path]:
    """The files below a directory with one of the suffixes, in any case, without hidden ones.

    Links to directories are followed, once: large data is often elsewhere.
    """
    paths, seen = list[Path](), set[str]()
    for directory, directories, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(directory)) in seen:
            directories.clear()
            continue
        seen.add(real)
        directories[:] = [name for name in directories if not name.startswith(".")]
        paths += [Path(directory, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


def split_of(path: Path, default: str = "train") -> str:
    """The split that the parts of a path name, the last one first: train, val or test."""
    words = (
        re.split(r"[\W_]|(?<=[a-z])20\d\d", part.lower()) for part in reversed(path.parts[-4:])
    )
    return next((_SPLITS[word] for part in words for word in part if word in _SPLITS), default)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file after its EXIF rotation."""
    try:
        with open_image(path) as image:
            return upright_size(image)
    except Exception as error:  # Pillow's parsers raise many types
        raise UserError(f"image {path} cannot be read: {why_unreadable(error)}") from error


def number(value: Any) -> float:
    """A finite number of a label file; integers stay integers."""
    value = float(value)
    return int(value) if value == int(value) else value


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without those that are empty."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return (line.strip() for line in lines if line.strip())


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", unquote(stem)).lower()


def _common_end(one: Path, other: Path) -> int:
    """How many of the last parts of two paths are equal."""
    pairs = zip(reversed(one.parts), reversed(other.parts))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
