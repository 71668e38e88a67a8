"""Corrects annotation files in COCO's format: ids, headings, class order, names, empty boxes."""

from typing import Any

from ropevit_mmdet.datasets.validation.annotations import LISTS, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import CocoFiles
from ropevit_mmdet.datasets.validation.config import image_files

Entries = list[dict[str, Any]]


def fix_annotations(files: CocoFiles) -> tuple[dict[str, Any], list[str]]:
    """Corrects what has one right form; `ropevit check-data` reports the rest.

    Returns:
        The content of the corrected file, and what was changed, in one line each.

    Raises:
        UserError: If the file is not in COCO's format.
    """
    content = read_annotation_file(files.ann_file, ("images", "categories"))
    changes = []
    for part in set(LISTS) & content.keys():  # a test server's file has no annotations
        content[part] = [one for one in content[part] or [] if isinstance(one, dict)]
    images, annotations, categories = (content.get(part, []) for part in LISTS)
    used = {str(one.get("category_id")) for one in annotations}
    for one in list(categories):
        if is_heading(one, categories, used):
            categories.remove(one)
            changes.append(f"heading {one.get('name')!r} removed")
    names = [one.get("name") for one in categories]
    order = {name: index for index, name in enumerate(files.classes)}
    if order.keys() <= set(names) and [one for one in names if one in order] != [*order]:
        categories.sort(key=lambda one: order.get(one.get("name"), len(order)))
        changes.append("categories ordered as the config's classes")
    changes += _link(images, annotations, "image_id", "images")
    changes += _link(categories, annotations, "category_id", "categories")
    sized = [one for one in annotations if not _has_no_size(one.get("bbox"))]
    if empty := len(annotations) - len(sized):
        annotations[:] = sized
        changes.append(f"{empty} boxes without width or height removed")
    ids = [one.get("id") for one in annotations]
    if len({*map(str, ids)}) < len(ids) or not all(isinstance(one, int) and one for one in ids):
        for number, one in enumerate(annotations, start=1):
            one["id"] = number
        changes.append("annotations numbered from 1")
    directory, paths = image_files(content, files._replace(searched=True))
    moved = {name: path for name, path in paths.items() if path != directory / name}
    for one in images:
        if one.get("file_name") in moved:
            one["file_name"] = moved[one["file_name"]].relative_to(directory).as_posix()
    changes += [f"{len(moved)} file names corrected"] if moved else []
    return content, changes


def is_heading(one: dict[str, Any], categories: Entries, used: set[str]) -> bool:
    """Whether a category without objects is a heading of the others, as Roboflow writes it."""
    others = [other for other in categories if other is not one]
    if not others or str(one.get("id")) in used:
        return False
    groups = [other.get("supercategory") for other in others]
    own = one.get("supercategory")
    first = one.get("id") == 0 and own == "none" and own not in groups
    top = one.get("name") in groups and own in (None, "", "none")
    return first or top or one.get("name") in [other.get("name") for other in others]


def _has_no_size(box: Any) -> bool:
    """Whether a width or height is 0: nothing is learned from the box, and nothing matches it."""
    return isinstance(box, list) and len(box) == 4 and 0 in box[2:]


def _link(entries: Entries, annotations: Entries, key: str, what: str) -> list[str]:
    """Gives images or categories integer ids, and annotations the ids that they mean."""
    ids = [one.get("id") for one in entries]
    known = dict(zip(map(str, ids), ids))
    links = {one.get(key) for one in annotations if isinstance(one.get(key), int | str)}
    valid = all(isinstance(one, int) for one in ids)
    mixed = any(link not in known.values() and str(link) in known for link in links)
    if len(known) < len(ids) or (valid and not mixed):
        return []
    if not valid:
        known = {old: number for number, old in enumerate(known, start=1)}
        for one in entries:
            one["id"] = known[str(one.get("id"))]
    lost = [one for one in annotations if str(one.get(key)) not in known]
    annotations[:] = [one for one in annotations if str(one.get(key)) in known]
    for one in annotations:
        one[key] = known[str(one[key])]
    changes = [f"{what} numbered from 1" if not valid else f"{key}s of annotations corrected"]
    return changes + ([f"{len(lost)} annotations of unknown {what} removed"] if lost else [])
