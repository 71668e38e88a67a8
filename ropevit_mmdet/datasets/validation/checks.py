"""The table of all checks of a dataset in COCO's format, and their findings.

Format: https://cocodataset.org/#format-data.
"""

from typing import Any, NamedTuple

from ropevit_mmdet.errors import UserError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Check(NamedTuple):
    """A row of the table. Errors stop a run, warnings are logged, notes are only reported."""

    severity: str
    message: str
    fix: str


_EXPORT, _CORRECT = "export the annotations again", "correct or remove them"
CHECKS = {
    "annotation file": Check(ERROR, "annotation file that cannot be read", _EXPORT),
    "image directory": Check(ERROR, "missing image directory", "set data_root and data_prefix"),
    "classes": Check(
        ERROR, "categories that do not match the config's classes",
        "set metainfo = dict(classes=(...)) in the config to the names of the file, in its order",
    ),
    "nothing to learn": Check(ERROR, "no objects at all", "use another annotation file"),
    "fields": Check(ERROR, "entries with a missing or invalid field", _EXPORT),
    "duplicate ids": Check(ERROR, "entries that share an id or a name", "number them from 1"),
    "id 0": Check(
        ERROR, "annotations with id 0, which COCO's evaluation takes for unmatched: AP is too low",
        "number the annotations from 1",
    ),
    "text ids": Check(ERROR, "ids of text, which COCO's evaluation rejects", "use integers"),
    "unknown ids": Check(
        WARNING, "annotations of images or categories that the file lacks: ignored", _EXPORT
    ),
    "degenerate boxes": Check(
        WARNING, "boxes narrower or lower than a pixel, or with area 0: ignored in training, "
        "missed in evaluation", _CORRECT,
    ),
    "boxes outside": Check(
        WARNING, "boxes entirely outside the image: ignored in training", _CORRECT
    ),
    "boxes beyond": Check(
        WARNING, "boxes that extend beyond the image by a pixel or more: used as they are",
        "if they are (x1, y1, x2, y2), convert them to COCO's (x, y, width, height)",
    ),
    "no masks": Check(
        ERROR, "annotations without a segmentation in a config that trains masks",
        "use a detector without masks: RetinaNet, FCOS or ATSS",
    ),
    "invalid masks": Check(ERROR, "invalid polygons or run lengths", _EXPORT),
    "short polygons": Check(
        WARNING, "polygons of less than three points: ignored, with the object if it has no other",
        _CORRECT,
    ),
    "empty masks": Check(
        WARNING, "masks without a pixel in the image: trained as they are, missed objects in "
        "evaluation", _CORRECT,
    ),
    "missing": Check(ERROR, "image is missing", "set data_prefix.img, or rename the files"),
    "unreadable": Check(ERROR, "image cannot be decoded", "download or convert it again"),
    "other size": Check(ERROR, "image has another size than its annotations", "annotate this file"),
    "stored size": Check(
        ERROR, "image is annotated in the size before its EXIF rotation",
        "rotate the pixels and remove the EXIF orientation, or annotate the upright image",
    ),
    "rotated": Check(
        WARNING, "image has an EXIF rotation: boxes must be on the upright image",
        "verify some with `ropevit browse`",
    ),
    "small": Check(
        WARNING, "image is less than 32 pixels wide or high: the COCO configs skip it",
        "set filter_cfg.min_size in the config",
    ),
    "no objects": Check(
        NOTE, "images without objects", "none needed; filter_cfg.filter_empty_gt=True skips them",
    ),
}  # fmt: skip


class Findings:
    """The places where checks failed: check -> places such as "1.png, annotation 3"."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, check: str, place: str) -> None:
        self.places.setdefault(check, []).append(place)

    def of(self, severity: str) -> list[str]:
        """The failed checks of one severity."""
        return [check for check in self.places if CHECKS[check].severity == severity]

    def count(self, severity: str) -> int:
        """Number of places of one severity."""
        return sum(len(self.places[check]) for check in self.of(severity))

    def summary(self, severity: str) -> str:
        """The failed checks of one severity in one line, each with its count and two places."""
        parts = []
        for check in self.of(severity):
            places = self.places[check]
            shown = "; ".join(places[:2]) + (", ..." if len(places) > 2 else "")
            parts.append(f"{CHECKS[check].message} ({len(places)}: {shown})")
        return "; ".join(parts)


def raise_issue(issue: str | None) -> None:
    """Raises `UserError` with an issue, if there is one."""
    if issue:
        raise UserError(issue)


def short(value: Any) -> str:
    """`repr` of a value, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
