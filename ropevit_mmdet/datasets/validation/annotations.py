"""Find what is wrong in a COCO annotation file: what stops a training, what it passes over.

Format: https://cocodataset.org/#format-data. What mmdet does with each kind: `CocoDataset` and
`LoadAnnotations` of mmdet 3.3.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ropevit_mmdet._images import MAX_PIXELS
from ropevit_mmdet.datasets.validation.findings import ERROR, NOTE, WARNING, Findings, Kind, short
from ropevit_mmdet.datasets.validation.segmentations import KINDS as SEGMENTATION_KINDS
from ropevit_mmdet.datasets.validation.segmentations import is_empty, segmentation_finding

KINDS = {
    "image fields": Kind(ERROR, "images without id, file_name, height or width, or with bad ones"),
    "image ids": Kind(ERROR, "images that share an id: objects would land on the wrong one"),
    "too large": Kind(
        ERROR, f"images of more than {MAX_PIXELS:,} pixels, which are not read: cut them up"
    ),
    "file names": Kind(WARNING, "images that share a file: it is seen that often"),
    "file sizes": Kind(ERROR, "images that share a file and give it different sizes"),
    "names not ASCII": Kind(NOTE, "file names with letters beyond ASCII: fine"),
    "category fields": Kind(ERROR, "categories without id or name, or with bad ones"),
    "category ids": Kind(ERROR, "categories that share an id: labels would shift"),
    "category names": Kind(ERROR, "categories that share a name: labels would shift"),
    "category gaps": Kind(NOTE, "list of category ids with gaps: fine, labels go by its order"),
    "annotation fields": Kind(ERROR, "annotations without a field that is needed, or a bad one"),
    "annotation ids": Kind(ERROR, "annotations that share an id"),
    "zero ids": Kind(
        ERROR,
        "annotations with id 0, which pycocotools takes for no object: whoever finds it is counted "
        "as wrong, and AP comes out too low; number them from 1",
    ),
    "text ids": Kind(ERROR, "annotations whose id is text: it ends an evaluation"),
    "mixed ids": Kind(
        ERROR, "ids of images or categories, some numbers and some text: they end an evaluation"
    ),
    "zero ids in training": Kind(
        WARNING, "annotations with id 0: learned, but an evaluation with this file would be wrong"
    ),
    "unknown images": Kind(WARNING, "annotations of images that the file does not have: left out"),
    "unknown categories": Kind(WARNING, "annotations of categories that it lacks: left out"),
    "not finite": Kind(ERROR, "boxes or areas that are NaN or infinite"),
    "negative boxes": Kind(WARNING, "boxes of negative width or height: left out of training"),
    "empty boxes": Kind(
        WARNING,
        "boxes narrower or lower than a pixel, or of area 0: left out of training, and missed "
        "objects to an evaluation",
    ),
    "boxes outside": Kind(WARNING, "boxes wholly outside their image: left out of training"),
    "boxes beyond": Kind(
        WARNING,
        "boxes that reach beyond their image by a pixel or more: used as they are; many of them "
        "may be (x1, y1, x2, y2) where COCO has (x, y, width, height)",
    ),
    "crowds": Kind(NOTE, "crowd regions: neither learned nor counted against what is found"),
    "ignored": Kind(
        NOTE, "objects marked with `ignore`: left out of training; an evaluation counts them"
    ),
    "large masks": Kind(
        WARNING, "images whose masks take more than 2 GB in each worker while they are loaded"
    ),
    **SEGMENTATION_KINDS,
}
LISTS = ("images", "annotations", "categories")
_LARGE_MASKS = 2e9  # bytes, one per pixel and object


def read_annotation_file(path: str | Path, lists: Sequence[str] = LISTS) -> dict[str, Any]:
    """A COCO annotation file's content.

    Raises ValueError if it is not there, is not JSON, or lacks one of some lists; a further one of
    `LISTS` may lack, but is a list where it is there.
    """
    if not Path(path).is_file():
        raise ValueError(f"annotation file {path} does not exist")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotation file {path} is not JSON, or truncated: {error}") from error
    for key in LISTS:
        there = isinstance(content, dict) and isinstance(content.get(key), list)
        if not there and (key in lists or key in content):
            raise ValueError(f"annotation file {path} has no {key!r}, a list: is it COCO's?")
    return content


def check_annotations(
    content: Mapping[str, Any], *, masks: bool, evaluated: bool = False, drawn: bool = False
) -> Findings:
    """The findings of an annotation file's content, without a look at the images.

    Args:
        masks: segmentations are read; else they are not looked at.
        evaluated: pycocotools will compare detections with it, and needs `iscrowd` and ids that
            it can put into an array of numbers, where it takes 0 for none.
        drawn: it is only drawn: annotations need neither `id` nor `area`.
    """
    findings = Findings(KINDS)
    images = _check_images(content["images"], findings)
    categories = _check_categories(content["categories"], findings)
    fields = ("image_id", "category_id", "bbox")
    fields += () if drawn else ("id", "area")
    fields += ("iscrowd",) if evaluated else ()
    annotations = _check_fields(content.get("annotations") or (), fields, findings)
    annotations = list(_check_links(annotations, images, categories, findings))
    _check_boxes(annotations, images, findings)
    for one in annotations:
        for kind in _remarks(one, evaluated):
            findings.add(kind, _place(one, images))
    for what, ids in (("images", images), ("categories", categories)) if evaluated else ():
        text = next((i for i in ids if isinstance(i, str)), None)
        number = next((i for i in ids if not isinstance(i, str)), None)
        if text is not None and number is not None:
            findings.add("mixed ids", f"{what}: {text!r} and {number!r}")
    if masks:
        _check_masks(annotations, images, findings, evaluated)
    return findings


def _check_images(entries: Sequence[Any], findings: Findings) -> dict[Any, dict[str, Any] | None]:
    """The images by their id; None for one whose fields are bad."""
    images: dict[Any, dict[str, Any] | None] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, image in enumerate(entries):
        fields = image if isinstance(image, dict) else {}
        bad = _bad_image_field(image)
        if bad:
            name = fields.get("file_name") or f"image number {number}"
            findings.add("image fields", f"{name}: {bad}")
            if is_id(fields.get("id")):
                images.setdefault(fields["id"], None)
            continue
        name, other = image["file_name"], images.get(image["id"])
        size = image["height"], image["width"]
        if other is not None:
            findings.add("image ids", f"{image['id']!r}: {other['file_name']} and {name}")
        elif name not in sizes:
            sizes[name] = size
        elif sizes[name] == size:
            findings.add("file names", name)
        else:
            findings.add("file sizes", name)
        if not name.isascii():
            findings.add("names not ASCII", name)
        if size[0] * size[1] > MAX_PIXELS:
            findings.add("too large", f"{name}: {size[1]} x {size[0]}")
        images[image["id"]] = image
    return images


def _bad_image_field(image: Any) -> str | None:
    if not isinstance(image, dict):
        return f"{short(image)} is not an entry with fields"
    for key in ("id", "file_name", "height", "width"):
        if key not in image:
            return f"no {key!r}"
    for key in ("height", "width"):
        if not _is_number(image[key]) or not 1 <= image[key] < 1e9 or image[key] % 1:
            return f"{key} {short(image[key])}"
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        return f"file_name {short(image['file_name'])}"
    return None if is_id(image["id"]) else f"id {short(image['id'])}"


def _check_categories(entries: Sequence[Any], findings: Findings) -> set[Any]:
    found = []
    for number, category in enumerate(entries):
        fields = category if isinstance(category, dict) else {}
        if is_id(fields.get("id")) and isinstance(fields.get("name"), str):
            found.append(category)
        else:
            findings.add("category fields", f"number {number}: {short(category)}")
    for key, kind in (("id", "category ids"), ("name", "category names")):
        for value, count in Counter(category[key] for category in found).items():
            if count > 1:
                findings.add(kind, f"{value!r} {count} times")
    ids = {category["id"] for category in found}
    if ids and all(isinstance(i, int) for i in ids) and max(ids) - min(ids) >= len(ids):
        findings.add("category gaps", f"{len(ids)} ids from {min(ids)} to {max(ids)}")
    return ids


def _check_fields(
    entries: Sequence[Any], fields: Sequence[str], findings: Findings
) -> Iterator[dict[str, Any]]:
    """The annotations with all fields, each of the type that it must have."""
    ids: set[Any] = set()
    for number, one in enumerate(entries):
        if not isinstance(one, dict):
            findings.add("annotation fields", f"number {number}: {short(one)}")
            continue
        missing = next((key for key in fields if key not in one), None)
        bad = f"no {missing!r}" if missing else _bad_value(one)
        if bad:
            place = f"annotation {short(one['id']) if 'id' in one else f'number {number}'}"
            image = f" of image {short(one['image_id'])}" if "image_id" in one else ""
            findings.add("annotation fields", f"{place}{image}: {bad}")
            continue
        if "id" in one:
            if one["id"] in ids:
                findings.add("annotation ids", f"{one['id']!r}")
            ids.add(one["id"])
        yield one


def _bad_value(one: Mapping[str, Any]) -> str | None:
    box = one["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {short(box)}"
    if one.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd {short(one['iscrowd'])}"
    if not _is_number(one.get("area", 0)):
        return f"area {short(one['area'])}"
    bad = (key for key in ("id", "image_id", "category_id") if not is_id(one.get(key, 0)))
    return next((f"{key} {short(one[key])}" for key in bad), None)


def _check_links(
    annotations: Iterable[dict[str, Any]],
    images: Mapping[Any, dict[str, Any] | None],
    categories: set[Any],
    findings: Findings,
) -> Iterator[dict[str, Any]]:
    """The annotations whose image and category the file has."""
    for one in annotations:
        if one["image_id"] not in images:
            findings.add("unknown images", f"annotation {_name(one)} of image {one['image_id']!r}")
        elif images[one["image_id"]] is None:
            continue  # that has been said of the image
        elif one["category_id"] not in categories:
            place = _place(one, images)
            findings.add("unknown categories", f"{place}: category {one['category_id']!r}")
        else:
            yield one


def _remarks(one: Mapping[str, Any], evaluated: bool) -> Iterator[str]:
    """The kinds of what one annotation says of itself beside its place and shape."""
    if one.get("iscrowd"):
        yield "crowds"
    if one.get("ignore"):
        yield "ignored"
    if evaluated and isinstance(one["id"], str):
        yield "text ids"
    if one.get("id") == 0:
        yield "zero ids" if evaluated else "zero ids in training"


def _check_boxes(
    annotations: Sequence[dict[str, Any]], images: Mapping[Any, Any], findings: Findings
) -> None:
    boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
    areas = np.array([one.get("area", 1) for one in annotations], np.float64)
    annotated = (images[one["image_id"]] for one in annotations)
    sizes = np.array([(image["width"], image["height"]) for image in annotated], np.float64)
    sizes = sizes.reshape(-1, 2)
    start, extent = boxes[:, :2], boxes[:, 2:]  # [N, 2] each: x and y, width and height
    with np.errstate(invalid="ignore", over="ignore"):
        end = start + extent
        finite = (np.abs(boxes) < 1e9).all(1) & np.isfinite(areas)
        wrong = {
            "not finite": ~finite,
            "negative boxes": (extent < 0).any(1),
            "empty boxes": (extent < 1).any(1) | (areas <= 0),
            "boxes outside": ((end <= 0) | (start >= sizes)).any(1),
            "boxes beyond": ((start <= -1) | (end >= sizes + 1)).any(1),
        }
    left = np.ones(len(boxes), bool)  # each box is named once, by the most severe
    for kind, found in wrong.items():
        for index in np.flatnonzero(found & left):
            one = annotations[index]
            area = f", area {one.get('area')}" if kind in ("not finite", "empty boxes") else ""
            findings.add(kind, f"{_place(one, images)}: bbox {one['bbox']}{area}")
        left &= ~found


def _check_masks(
    annotations: Sequence[dict[str, Any]],
    images: Mapping[Any, Any],
    findings: Findings,
    evaluated: bool,
) -> None:
    for one in annotations:
        image = images[one["image_id"]]
        size = image["height"], image["width"]
        finding = segmentation_finding(one.get("segmentation"), *size, evaluated=evaluated)
        if finding:
            kind, said = finding
            findings.add(kind, f"{_place(one, images)}{said}")
        elif is_empty(one["segmentation"], *size):
            findings.add("empty masks", _place(one, images))
    for image_id, objects in Counter(one["image_id"] for one in annotations).items():
        image = images[image_id]
        size = image["height"] * image["width"] * objects
        if size > _LARGE_MASKS:
            place = f"{image['file_name']}: {objects} masks of {image['width']} x {image['height']}"
            findings.add("large masks", f"{place}, {size / 1e9:.0f} GB")


def _place(one: Mapping[str, Any], images: Mapping[Any, Any]) -> str:
    return f"{images[one['image_id']]['file_name']}, annotation {_name(one)}"


def _name(one: Mapping[str, Any]) -> str:
    return str(one.get("id", "without id"))


def _is_number(value: Any) -> bool:
    """A number that fits a float; NaN and infinity are."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1e15)


def is_id(value: Any) -> bool:
    """Whether an image, an annotation or a category can be called that; integers have 64 bits."""
    if isinstance(value, int):
        return abs(value) < 1 << 64
    return isinstance(value, str) or (isinstance(value, float) and value == value)
