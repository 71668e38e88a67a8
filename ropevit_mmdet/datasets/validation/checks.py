"""The table of all checks of a dataset in COCO's format, and their findings.

Format: https://cocodataset.org/#format-data.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ropevit_mmdet.errors import UserError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class CocoFiles(NamedTuple):
    """The files of a dataset in COCO's format, and their use."""

    ann_file: Path
    img_dir: Path
    masks: bool | None = None  # whether segmentations are read; None: if any exists
    classes: tuple[str, ...] = ()  # of the config; empty where the file lists them
    trained: bool | None = None  # or evaluated; None: maybe both
    searched: bool = True  # whether the dataset finds images that are not in img_dir
    partial: bool = False  # whether only some of its images are evaluated
    local: bool = True  # whether it is read without another storage backend
    by_id: bool = False  # whether labels follow the ids of the categories, and not their order


class Check(NamedTuple):
    """A row of the table. Errors stop a run, warnings are logged, notes are only reported."""

    severity: str
    message: str
    fix: str


FIXED = "`ropevit check-data ... --fix OUT.json`"  # begins the fix of what it corrects
_EXPORT, _CORRECT = "export the annotations again", "correct or remove them"
_RENUMBER = f"{FIXED} renumbers them"
CHECKS = {
    "annotation file": Check(ERROR, "annotation file that cannot be read", _EXPORT),
    "image directory": Check(ERROR, "missing image directory", "set data_root and data_prefix.img"),
    "classes": Check(
        ERROR, "categories that are not the config's classes",
        "for a new training set metainfo = dict(classes=(...)) to the names of the file, in its "
        "order; a trained checkpoint needs a file with its own classes",
    ),
    "class order": Check(
        ERROR, "categories in another order than the config's classes: labels follow the file",
        f"{FIXED} orders the file; for a new training, classes in the order of the file do, too",
    ),
    "other classes": Check(
        WARNING, "objects of other classes than the config's: neither trained nor evaluated",
        "to use them, list their classes in metainfo.classes, in the order of the file",
    ),
    "nothing usable": Check(ERROR, "no usable objects", "use another annotation file"),
    "mostly crowds": Check(
        WARNING, "most objects are crowds or ignored: not trained",
        "set iscrowd and ignore to 0 where an annotation is one object, however its mask is coded",
    ),
    "fields": Check(ERROR, "entries with a missing or invalid field", _EXPORT),
    "duplicate ids": Check(
        ERROR, "entries that share an id or a name",
        f"{FIXED} renumbers annotations and drops headings; else {_EXPORT}",
    ),
    "id 0": Check(ERROR, "annotations with id 0, unmatched for COCO's evaluation", _RENUMBER),
    "text ids": Check(ERROR, "ids of text, which COCO's evaluation rejects", _RENUMBER),
    "other ids": Check(
        WARNING, "annotations that name an image or category by a text for a number, or the "
        "reverse: ignored", _RENUMBER,
    ),
    "unknown ids": Check(
        WARNING, "annotations of images or categories that the file lacks: ignored", _EXPORT
    ),
    "same file": Check(
        WARNING, "images that are listed several times: each has only its own objects",
        "give all annotations of a file to one image",
    ),
    "repeated objects": Check(
        WARNING, "objects of one class and box: an evaluation counts all but one as missed",
        _CORRECT,
    ),
    "file names": Check(
        WARNING, "file names that are found only with / for \\, decoded or in part",
        f"{FIXED} writes the names of the files",
    ),
    "degenerate boxes": Check(
        WARNING, "boxes narrower or lower than a pixel, or with area 0: not trained, and missed in "
        "every evaluation", f"{FIXED} removes those without width or height; else {_CORRECT}",
    ),
    "boxes outside": Check(
        WARNING, "boxes entirely outside the image: not trained, and missed in every evaluation",
        _CORRECT,
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
    "short polygons": Check(WARNING, "polygons of less than three points: ignored", _CORRECT),
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
    "no annotations": Check(
        NOTE, "file without annotations, as of a test server", "set format_only=True to test on it"
    ),
    "no objects": Check(
        NOTE, "images without objects", "none needed; filter_cfg.filter_empty_gt=True skips them"
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

    @property
    def fixable(self) -> bool:
        """Whether `fix_annotations` corrects one of them."""
        return any(CHECKS[check].fix.startswith(FIXED) for check in self.places)

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
