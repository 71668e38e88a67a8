"""Reads COCO annotation files and checks their content, without their images."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropevit_mmdet.datasets.validation.checks import (
    CHECKS,
    CocoFiles,
    Findings,
    raise_issue,
    short,
)
from ropevit_mmdet.datasets.validation.segmentations import is_short, segmentation_finding

FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox", "id", "area"),
    "categories": ("id", "name"),
}
LISTS = tuple(FIELDS)


def read_annotation_file(path: str | Path, lists: Sequence[str] = LISTS) -> dict[str, Any]:
    """Reads a COCO annotation file that has `lists`; raises `UserError` if it is not one.

    A file with annotations has all of `LISTS`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fields = content if isinstance(content, dict) else {}
        required = LISTS if "annotations" in fields else lists
        wrong = [key for key in required if not isinstance(fields.get(key), list)]
        issue = f"has no {wrong[0]!r}, a list: is it in COCO's format?" if wrong else ""
    except FileNotFoundError:
        issue = "does not exist"
    except OSError as error:
        issue = f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        issue = f"is not JSON, or truncated: {error}"
    raise_issue(issue and f"annotation file {path} {issue}")
    return content


def field_issue(one: Any, keys: Sequence[str]) -> str:
    """What is wrong with the fields of an entry, "" if all are valid."""
    if not isinstance(one, dict):
        return short(one)
    for key in keys:
        if key not in one:
            return f"no {key!r}"
        if not _VALID[key](one[key]):
            return f"{key} {short(one[key])}"
    return ""


def check_annotations(
    content: Mapping[str, Any], files: CocoFiles, required: bool = False
) -> Findings:
    """Checks the content of an annotation file; `required` is an object that counts.

    COCO's evaluation needs `iscrowd`, and ids that are integers.
    """
    findings, evaluated = Findings(), not files.trained
    valid = {}
    for part, keys in FIELDS.items():
        keys += ("iscrowd",) * (evaluated and part == "annotations")
        valid[part] = _valid_entries(part, content.get(part) or (), keys, findings)
        _check_ids(part, valid[part], evaluated, findings)
    required = required and "fields" not in findings.places
    images, categories = ({one["id"]: one for one in valid[part]} for part in LISTS[::2])
    reasons = Counter(
        _check_object(one, images, categories, files, findings) for one in valid["annotations"]
    )
    total = len(valid["annotations"])
    crowds = sum(bool(one.get("iscrowd") or one.get("ignore")) for one in valid["annotations"])
    if total < 2 * crowds < 2 * total:
        findings.add("mostly crowds", f"{crowds:,} of {total:,} objects")
    if required and not reasons[""]:
        task = "evaluate" if files.trained is False else "learn"
        counts = [f"{'all' if n == total else n} {why}" for why, n in reasons.most_common()]
        why = ", ".join(counts) or "the file has no annotations"
        text = f"nothing to {task}: {len(images):,} images, 0 usable objects: {why}"
        findings.add("nothing usable", text)
    known = files.classes and "categories" in content
    if known and (issue := _classes_issue(content, files)):
        findings.add(*issue)
    return findings


def _check_object(
    one: Mapping[str, Any],
    images: Mapping,
    categories: Mapping,
    files: CocoFiles,
    findings: Findings,
) -> str:
    """Adds what is wrong with an object; returns why it does not count, "" if it does."""
    if check := _link_check(one, images, categories):
        ids = f"image {one['image_id']!r}, category {one['category_id']!r}"
        findings.add(check, f"annotation {one['id']}: {ids}")
        key = "image_id" if one["image_id"] not in images else "category_id"
        other = check == "other ids"
        return f"have {key}s of another type than the ids" if other else f"have unknown {key}s"
    if files.classes and categories[one["category_id"]]["name"] not in files.classes:
        return "are of other classes than the config's"
    image = images[one["image_id"]]
    place, size = f"{image['file_name']}, annotation {one['id']}", (image["height"], image["width"])
    if check := _box_check(one, image):
        findings.add(check, f"{place}: bbox {one['bbox']}, area {one['area']}")
    shape = one.get("segmentation")
    if files.masks and (mask := segmentation_finding(shape, *size, evaluated=not files.trained)):
        findings.add(mask[0], place + mask[1])
    return _why_unused(one, check, files)


def _why_unused(one: Mapping[str, Any], box_check: str, files: CocoFiles) -> str:
    """Why mmdet does not train, or COCO's evaluation does not count, an object; "" if used.

    Follows `CocoDataset` and `LoadAnnotations` of mmdet 3.3, and pycocotools.
    """
    if one.get("iscrowd"):
        return "are crowds (iscrowd=1)"
    if max(map(abs, one["bbox"])) < 1.1:  # some tools write a bit more than 1
        return "have a box within 0..1: boxes are in pixels, not normalized"
    if files.trained is False:
        return ""
    if one.get("ignore"):
        return "are marked `ignore`"
    if box_check in ("degenerate boxes", "boxes outside"):
        small = box_check == "degenerate boxes"
        return "are smaller than a pixel" if small else "are outside of the image"
    parts = one.get("segmentation") if files.masks else None
    valid = isinstance(parts, list) and all(isinstance(part, list) for part in parts)
    short_parts = parts and valid and all(map(is_short, parts))
    return "have polygons of less than three points" if short_parts else ""


def _classes_issue(content: Mapping[str, Any], files: CocoFiles) -> tuple[str, str] | None:
    """Why the categories of a file do not give the labels of a config's classes; None if they do.

    mmdet numbers classes in the file's order and ignores objects of other categories; those without
    objects, such as a heading, do no harm. Returns the name of the check, and the details.
    """
    classes = files.classes
    entries = [one for one in content.get("annotations") or () if isinstance(one, dict)]
    used = {str(one.get("category_id")) for one in entries}
    categories = [one for one in content["categories"] if not field_issue(one, ("id", "name"))]
    if files.by_id:
        categories.sort(key=lambda one: one["id"])
    names = [one["name"] for one in categories]
    extra = [one["name"] for one in categories
             if one["name"] not in classes and str(one["id"]) in used]  # fmt: skip
    missing = [name for name in classes if name not in names]
    others = f"include {_listed(extra)}, with objects, which the config's classes lack"
    if missing:
        check, issue = "classes", f"lack {_listed(missing)} of the config's classes"
        issue += f" and {others}" if extra else ""
    elif [name for name in names if name in classes] != list(classes):
        check, issue = "class order", "have another order than the config's classes"
    elif extra:
        check, issue = "other classes", others
    else:
        return None
    return check, f"{_listed(names)}: they {issue} ({_listed(classes)}); {CHECKS[check].fix}"


def _link_check(one: Mapping[str, Any], images: Mapping, categories: Mapping) -> str:
    """Name of the check that the ids of an annotation fail, "" if its image and category exist."""
    links = (one["image_id"], images), (one["category_id"], categories)
    missing = [(value, known) for value, known in links if value not in known]
    if not missing:
        return ""
    other = (_other_type(value) in known for value, known in missing)
    return "other ids" if all(other) else "unknown ids"


def _other_type(value: int | str) -> int | str | None:
    if isinstance(value, int):
        return str(value)
    return int(value) if value.isdecimal() else None


def _box_check(one: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Name of the most severe check that a box fails, "" if it is valid."""
    x, y, width, height = one["bbox"]
    right, bottom = x + width, y + height
    if min(width, height) < 1 or one["area"] <= 0:
        return "degenerate boxes"
    if min(right, bottom) <= 0 or x >= image["width"] or y >= image["height"]:
        return "boxes outside"
    beyond = right >= image["width"] + 1 or bottom >= image["height"] + 1
    return "boxes beyond" if beyond or min(x, y) <= -1 else ""


def _valid_entries(
    part: str, entries: Sequence[Any], keys: Sequence[str], findings: Findings
) -> list[dict[str, Any]]:
    """The entries whose fields are valid."""
    valid = []
    for index, one in enumerate(entries):
        if issue := field_issue(one, keys):
            fields = one if isinstance(one, dict) else {}
            name = fields.get("file_name") or fields.get("id", f"at index {index}")
            image = f" of image {short(fields['image_id'])}" if "image_id" in fields else ""
            findings.add("fields", f"{SINGULAR[part]} {short(name)}{image}: {issue}")
        else:
            valid.append(one)
    return valid


SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15  # NaN is not, either


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_id(value: Any) -> bool:
    return abs(value) < 1 << 63 if isinstance(value, int) else _is_name(value)


_VALID: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), _is_id),
    **dict.fromkeys(("file_name", "name"), _is_name),
    **dict.fromkeys(("height", "width"), lambda n: _is_number(n) and n >= 1 and n % 1 == 0),
    "bbox": lambda box: isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)),
    "area": _is_number,
    "iscrowd": lambda value: isinstance(value, int),
}


def _check_ids(
    part: str, entries: Sequence[dict[str, Any]], evaluated: bool, findings: Findings
) -> None:
    what = SINGULAR[part]
    for key in {"images": ("id", "file_name"), "categories": ("id", "name")}.get(part, ("id",)):
        check = "same file" if key == "file_name" else "duplicate ids"
        for value, count in Counter(one[key] for one in entries).items():
            if count > 1:
                findings.add(check, f"{what} {key} {value!r}, {count} times")
            if evaluated and key == "id" and isinstance(value, str):
                findings.add("text ids", f"{what} {value!r}")
            if evaluated and part == "annotations" and value == 0:
                findings.add("id 0", f"{what} {value!r}")
    if part == "annotations":
        objects = ((one["image_id"], one["category_id"], *one["bbox"]) for one in entries)
        for (image_id, _, *box), count in Counter(objects).items():
            if count > 1:
                findings.add("repeated objects", f"image {image_id!r}, bbox {box}: {count} times")


def _listed(names: Sequence[Any]) -> str:
    more = f", ... {len(names)} in total" if len(names) > 6 else ""
    return ", ".join(map(repr, names[:6])) + more
