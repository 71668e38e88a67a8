"""Checks the segmentations of COCO annotations: polygons and run lengths.

pycocotools crashes (SIGSEGV) on polygons with NaN or distant coordinates, and returns uninitialized
memory for run lengths that end early: both are rejected here.
"""

import math
from typing import Any

from ropevit_mmdet.datasets.validation.checks import short


def segmentation_finding(
    segmentation: Any, height: int, width: int, *, evaluated: bool = False
) -> tuple[str, str] | None:
    """Name of the check that a segmentation fails, and details; None if it is valid.

    Evaluated: COCO's evaluation takes a first polygon of four numbers for a box.
    """
    if not segmentation:
        return "no masks", ""
    if isinstance(segmentation, list):
        finding = _polygon_finding(segmentation, height, width)
        if finding == ("short polygons", "") and evaluated and len(segmentation[0]) <= 4:
            return "invalid masks", ": first polygon of less than three points"
        return finding
    issue = _run_length_issue(segmentation, height, width)
    return ("invalid masks", f": {issue}") if issue else None


def is_short(polygon: list[float]) -> bool:
    """Whether mmdet ignores a polygon: it has less than three points, or half a one."""
    return len(polygon) < 6 or len(polygon) % 2 == 1


def _polygon_finding(polygons: list[Any], height: int, width: int) -> tuple[str, str] | None:
    finding = None
    for polygon in polygons:
        try:
            valid = isinstance(polygon, list) and math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            valid = False
        if valid and is_short(polygon):
            finding = "short polygons", ""
            continue
        if valid:  # within an image size of the image
            xs, ys = polygon[::2], polygon[1::2]
            valid = min(xs) >= -width and max(xs) <= 2 * width
            valid = valid and min(ys) >= -height and max(ys) <= 2 * height
        if not valid:
            return "invalid masks", f": {short(polygon)}"
    return finding


def _run_length_issue(code: Any, height: int, width: int) -> str:
    """Why a value is not a run-length code of an image, "" if it is."""
    if not isinstance(code, dict) or "counts" not in code:
        return short(code)
    if code.get("size") != [height, width]:
        return f"size {short(code.get('size'))} (height, width) of {[height, width]}"
    counts = _decoded(code["counts"]) if isinstance(code["counts"], str) else code["counts"]
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return f"counts {short(code['counts'])}: not run lengths"
    total = f"{sum(counts)} of {height * width} pixels"
    return "" if sum(counts) == height * width else f"counts {short(code['counts'])}: {total}"


def _decoded(text: str) -> list[int] | None:
    """Run lengths from COCO's text form; None if it is invalid.

    A character has 5 bits of a number, lowest first, and 0x20 if more follow; from the fourth
    number on, numbers are differences to the one two before (`rleToString` of pycocotools).
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode():
        code -= 48
        if not 0 <= code < 64:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (code & 0x10) >> 4 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
