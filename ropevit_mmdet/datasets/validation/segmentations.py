"""Check the segmentations of a COCO annotation file: polygons and run lengths.

Format: https://cocodataset.org/#format-data. pycocotools 2.0.11 ends the process (SIGSEGV) on
polygons with NaN or far-away coordinates, and fills masks whose run lengths end early with memory
that nobody wrote; mmdet 3.3 leaves out polygons of less than three points (`LoadAnnotations`).
"""

import math
from collections.abc import Mapping
from operator import mul
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet.datasets.validation.findings import ERROR, WARNING, Kind, short

KINDS = {
    "no masks": Kind(
        ERROR,
        "annotations without a segmentation, where masks are learned: RetinaNet, FCOS and ATSS "
        "need none",
    ),
    "bad masks": Kind(ERROR, "segmentations that are neither lists of polygons nor run lengths"),
    "wild polygons": Kind(
        ERROR, "polygons with coordinates that are NaN, or further outside than the image is wide"
    ),
    "short polygons": Kind(
        WARNING,
        "polygons of less than three points, or with half a point: left out; an object without "
        "another polygon is neither learned nor counted against what is found",
    ),
    "two points first": Kind(
        ERROR, "objects whose first polygon is of two points or less: they end an evaluation"
    ),
    "empty masks": Kind(
        WARNING,
        "masks without a pixel (flat polygons, ones outside the image, run lengths of background "
        "alone): learned as they are, and missed objects to an evaluation of masks",
    ),
    "run lengths": Kind(ERROR, "run lengths of another size than the image, or damaged ones"),
}


def segmentation_finding(
    found: Any, height: int, width: int, *, evaluated: bool = False
) -> tuple[str, str] | None:
    """The kind of finding of one object's segmentation, and what to say of it; None if it is fine.

    `height` and `width` are those of the image, in pixels; `evaluated`: pycocotools will compare
    masks with it, and takes a first polygon of four numbers for a box.
    """
    if not found:
        return "no masks", ""
    if isinstance(found, list):
        kind = _polygon_finding(found, height, width)
        if kind == "short polygons" and evaluated and len(found[0]) <= 4:
            kind = "two points first"
        return kind and (kind, "")
    if not isinstance(found, dict) or "counts" not in found or "size" not in found:
        return "bad masks", f": {short(found)}"
    said = _run_length_finding(found, height, width)
    return said and ("run lengths", f": {said}")


def is_empty(found: list[Any] | Mapping[str, Any], height: int, width: int) -> bool:
    """Whether a segmentation, which must be without finding, covers no pixel of the image."""
    if isinstance(found, list):
        return all(_covers_nothing(polygon, height, width) for polygon in found)
    if isinstance(found["counts"], list):
        return not any(found["counts"][1::2])
    return int(rle.area(found)) == 0


def _covers_nothing(polygon: list[float], height: int, width: int) -> bool:
    """Drawn only if it may be: thinner than a pixel in the mean, or not wholly in the image."""
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    twice_area = sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))
    if abs(twice_area) > 2 * (right - left + bottom - top) and (
        left >= 0 and top >= 0 and right <= width and bottom <= height
    ):
        return False
    return int(rle.area(rle.frPyObjects([polygon], height, width))[0]) == 0


def _polygon_finding(polygons: list[Any], height: int, width: int) -> str | None:
    kind = None
    for polygon in polygons:
        if not isinstance(polygon, list):
            return "bad masks"
        try:
            finite = math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            return "bad masks"
        if not finite:
            return "wild polygons"
        if len(polygon) < 6 or len(polygon) % 2:
            kind = "short polygons"
            continue
        xs, ys = polygon[::2], polygon[1::2]
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        if left < -width or right > 2 * width or top < -height or bottom > 2 * height:
            return "wild polygons"
    return kind


def _run_length_finding(code: Mapping[str, Any], height: int, width: int) -> str | None:
    size, counts = code["size"], code["counts"]
    if size != [height, width]:
        return f"size {short(size)} (height, width), the image has {[height, width]}"
    if isinstance(counts, str):
        counts = _decoded_counts(counts)
    elif not isinstance(counts, list) or not all(type(count) is int for count in counts):
        counts = None
    if counts is None or min(counts, default=0) < 0:
        return "counts that are not run lengths"
    total = sum(counts)
    return None if total == height * width else f"{total} of {height * width} pixels"


def _decoded_counts(text: str) -> list[int] | None:
    """The numbers in COCO's text form of run lengths; None if it is not that.

    A character holds 5 bits of a number, lowest first, and 0x20 if more follow; from the fourth
    number on they are differences to the one two before (`rleToString` of pycocotools).
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return None
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # 35 bits are more than any image has
        return None
    numbers = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    negative = (codes[ends] & 0x10) != 0
    numbers -= negative * (np.int64(1) << (5 * (places[ends] + 1)))
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers.tolist()
