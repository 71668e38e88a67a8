"""Reads COCO annotation files and checks their content."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ropevit_mmdet.datasets.validation.checks import CHECKS, Findings, raise_issue, short
from ropevit_mmdet.datasets.validation.segmentations import segmentation_finding

LISTS = ("images", "annotations", "categories")
_ID, _NUMBER = (int, str), (int, float)


def read_annotation_file(path: str | Path, lists: Sequence[str] = LISTS) -> dict[str, Any]:
    """Reads a COCO annotation file that has `lists`; raises `UserError` if it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fields = content if isinstance(content, dict) else {}
        required = (key for key in LISTS if key in lists or key in fields)
        wrong = [key for key in required if not isinstance(fields.get(key), list)]
        issue = f"has no {wrong[0]!r}, a list: is it in COCO's format?" if wrong else ""
    except FileNotFoundError:
        issue = "does not exist"
    except (ValueError, RecursionError) as error:
        issue = f"is not JSON, or truncated: {error}"
    raise_issue(issue and f"annotation file {path} {issue}")
    return content


def check_annotations(
    content: Mapping[str, Any], *, masks: bool, evaluated: bool = False, drawn: bool = False
) -> Findings:
    """Checks the content of an annotation file: with `masks` the segmentations too.

    COCO's evaluation needs `iscrowd` and integer ids; for drawing neither `id` nor `area` is used.
    """
    findings = Findings()
    types: dict[str, Any] = {"id": _ID, "file_name": str, "height": _NUMBER, "width": _NUMBER}
    images = _check_entries(content["images"], types, "image", findings)
    names = {"id": _ID, "name": str}
    categories = _check_entries(content["categories"], names, "category", findings)
    types = {"image_id": _ID, "category_id": _ID, "bbox": list}
    types |= {} if drawn else {"id": _ID, "area": _NUMBER}
    types |= {"iscrowd": int} if evaluated else {}
    entries = _check_entries(content.get("annotations") or (), types, "annotation", findings)
    sizes = {one["id"]: one for one in images}
    _check_ids("image", images, evaluated, findings)
    _check_ids("category", categories, evaluated, findings)
    _check_ids("annotation", [one for one in entries if "id" in one], evaluated, findings)
    known = {one["id"] for one in categories}
    annotations = []
    for one in entries:
        if one["image_id"] in sizes and one["category_id"] in known:
            annotations.append(one)
        else:
            place = f"image {one['image_id']!r}, category {one['category_id']!r}"
            findings.add("unknown ids", f"annotation {one.get('id')}: {place}")
    _check_boxes(annotations, sizes, findings)
    for one in annotations if masks else ():
        size = sizes[one["image_id"]]["height"], sizes[one["image_id"]]["width"]
        finding = segmentation_finding(one.get("segmentation"), *size, evaluated=evaluated)
        if finding:
            findings.add(finding[0], _place(one, sizes) + finding[1])
    return findings


def classes_issue(content: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    """Why the categories of a file do not give the labels of a config's classes; None if they do.

    mmdet numbers classes in the file's order and ignores objects of other categories. No classes
    mean those of the file; categories without objects, such as a heading, do no harm.
    """
    entries = [one for one in content.get("annotations") or () if isinstance(one, dict)]
    used = {str(one.get("category_id")) for one in entries}
    categories = [one for one in content["categories"] if isinstance(one, dict) and "name" in one]
    names = [one["name"] for one in categories]
    with_objects = [one["name"] for one in categories if str(one.get("id")) in used]
    extra = [name for name in with_objects if name not in classes]
    fits = not extra and [name for name in names if name in classes] == list(classes)
    if fits or not classes:
        return None
    missing = [name for name in classes if name not in names]
    if len(missing) == len(classes):
        issue = "share no name with the config's classes"
    elif missing:
        issue = f"lack {_listed(missing)} of the config's classes"
    elif extra:
        issue = f"include {_listed(extra)}, with objects, which the config's classes lack"
    else:
        issue = "have another order than the config's classes, and labels follow the file's order"
    return f"{_listed(names)}: they {issue} ({_listed(classes)}); {CHECKS['classes'].fix}"


def _check_entries(
    entries: Sequence[Any], types: Mapping[str, Any], what: str, findings: Findings
) -> list[dict[str, Any]]:
    """The entries that have all fields of `types` with valid values."""
    valid = []
    for index, one in enumerate(entries):
        issue = next(_field_issues(one, types), None)
        if issue:
            fields = one if isinstance(one, dict) else {}
            name = fields.get("file_name") or fields.get("id", f"at index {index}")
            image = f" of image {short(fields['image_id'])}" if "image_id" in fields else ""
            findings.add("fields", f"{what} {short(name)}{image}: {issue}")
        else:
            valid.append(one)
    return valid


def _field_issues(one: Any, types: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(one, dict):
        yield short(one)
        return
    for key, expected in types.items():
        if key not in one:
            yield f"no {key!r}"
            continue
        value, valid = one[key], isinstance(one[key], expected)
        numbers = [value] if valid and isinstance(value, _NUMBER) else []
        if valid and key == "bbox":
            valid, numbers = len(value) == 4 and all(isinstance(n, _NUMBER) for n in value), value
        limit = 1 << 63 if key.endswith("id") else 1e15  # NaN is beyond it, too
        valid = valid and all(-limit < number < limit for number in numbers)
        if key in ("height", "width"):
            valid = valid and value >= 1 and value % 1 == 0
        if not valid or value == "":
            yield f"{key} {short(value)}"


def _check_ids(
    what: str, entries: Sequence[dict[str, Any]], evaluated: bool, findings: Findings
) -> None:
    keys = [("id", one["id"]) for one in entries]
    keys += [("name", one["name"]) for one in entries if what == "category"]
    for (key, value), count in Counter(keys).items():
        if count > 1:
            findings.add("duplicate ids", f"{what} {key} {value!r}, {count} times")
        if evaluated and key == "id" and isinstance(value, str):
            findings.add("text ids", f"{what} {value!r}")
        if evaluated and what == "annotation" and value == 0:
            findings.add("id 0", f"annotation {value!r}")


def _check_boxes(
    annotations: Sequence[dict[str, Any]], images: Mapping[Any, Any], findings: Findings
) -> None:
    boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
    areas = np.array([one.get("area", 1) for one in annotations], np.float64)
    annotated = (images[one["image_id"]] for one in annotations)
    sizes = np.array([(image["width"], image["height"]) for image in annotated]).reshape(-1, 2)
    start, extent = boxes[:, :2], boxes[:, 2:]  # [N, 2] each: x and y, width and height
    end = start + extent
    failed = {  # most severe first: a box is reported once
        "degenerate boxes": (extent < 1).any(1) | (areas <= 0),
        "boxes outside": ((end <= 0) | (start >= sizes)).any(1),
        "boxes beyond": ((start <= -1) | (end >= sizes + 1)).any(1),
    }
    reported = np.zeros(len(boxes), bool)
    for check, wrong in failed.items():
        for index in np.flatnonzero(wrong & ~reported).tolist():
            one = annotations[index]
            box = f"bbox {one['bbox']}, area {one.get('area')}"
            findings.add(check, f"{_place(one, images)}: {box}")
        reported |= wrong


def _place(one: Mapping[str, Any], images: Mapping[Any, Any]) -> str:
    return f"{images[one['image_id']]['file_name']}, annotation {one.get('id', 'without id')}"


def _listed(names: Sequence[Any]) -> str:
    more = f", ... {len(names)} in total" if len(names) > 6 else ""
    return ", ".join(map(repr, names[:6])) + more
