"""All that is wrong with a data set in COCO's format, its pictures included, before a run."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ropevit_mmdet._images import SUFFIXES
from ropevit_mmdet.datasets.checked_coco import CocoFiles
from ropevit_mmdet.datasets.validation.annotations import KINDS as ANNOTATION_KINDS
from ropevit_mmdet.datasets.validation.annotations import (
    LISTS,
    check_annotations,
    is_id,
    read_annotation_file,
)
from ropevit_mmdet.datasets.validation.categories import check_classes
from ropevit_mmdet.datasets.validation.findings import ERROR, NOTE, SEVERITIES, Kind, Troubles
from ropevit_mmdet.datasets.validation.image_files import KINDS as PICTURE_KINDS
from ropevit_mmdet.datasets.validation.image_files import check_picture

KINDS = {
    "annotation file": Kind(ERROR, "annotation file that cannot be used"),
    "picture folder": Kind(ERROR, "picture folder that is not there"),
    "classes": Kind(ERROR, "list of categories that does not give the config's classes"),
    "nothing to learn": Kind(ERROR, "data set without a single object"),
    "no objects": Kind(NOTE, "pictures without objects: configs for COCO leave them out"),
    "not annotated": Kind(NOTE, "pictures in the folder that the annotations do not have"),
    **ANNOTATION_KINDS,
    **PICTURE_KINDS,
}
# Wraps an iteration over so many pictures, as tqdm does.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Report(NamedTuple):
    """What was found in one data set."""

    files: CocoFiles
    counts: dict[str, int]  # of images, annotations and categories
    troubles: Troubles

    def lines(self, show: int = 5) -> Iterator[str]:
        """The report as text: errors first, of each kind its number and its first places."""
        counts = ", ".join(f"{number:,} {key}" for key, number in self.counts.items())
        yield f"{self.files.ann_file}, pictures in {self.files.img_dir}: {counts or 'not read'}"
        for severity in SEVERITIES:
            for kind in self.troubles.of(severity):
                places = self.troubles.places[kind]
                yield f"  {severity:8} {self.troubles.kinds[kind].meaning} ({len(places):,})"
                shown = places if severity != NOTE else places[:1]
                yield from (f"{'':11}  {place}" for place in shown[:show])
                if len(places) > len(shown[:show]):
                    yield f"{'':11}  ... and {len(places) - len(shown[:show]):,} more"
        if not self.troubles.places:
            yield "  nothing is wrong"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON takes it, with every place."""
        found = [
            {
                "kind": kind,
                "severity": severity,
                "meaning": self.troubles.kinds[kind].meaning,
                "count": len(self.troubles.places[kind]),
                "places": self.troubles.places[kind],
            }
            for severity in SEVERITIES
            for kind in self.troubles.of(severity)
        ]
        files = {"ann_file": str(self.files.ann_file), "img_dir": str(self.files.img_dir)}
        return {**files, **self.counts, "troubles": found}

    def count(self, severity: str) -> int:
        """How many troubles of one severity there are."""
        return sum(len(self.troubles.places[kind]) for kind in self.troubles.of(severity))


def report_dataset(
    files: CocoFiles,
    *,
    decode: bool = False,
    progress: Progress = lambda items, total: items,
) -> Report:
    """Check an annotation file and the pictures that it names.

    Of pictures only the headers are read, on several threads; with `decode` every one is decoded,
    a picture at a time for each core.
    """
    troubles = Troubles(KINDS)
    try:
        content = read_annotation_file(files.ann_file)
    except ValueError as error:
        troubles.add("annotation file", str(error))
        return Report(files, {}, troubles)
    counts = {key: len(content[key]) for key in LISTS}
    if files.classes:
        try:
            check_classes(files.ann_file, content, files.classes)
        except ValueError as error:
            troubles.add("classes", str(error))
    masks = _has_masks(content) if files.masks is None else files.masks
    troubles.update(check_annotations(content, masks=masks, evaluated=files.evaluated))
    _check_objects(content, troubles)
    if files.img_dir.is_dir():
        _check_pictures(content["images"], files.img_dir, troubles, decode, progress)
    else:
        troubles.add("picture folder", f"{files.img_dir} (looked in {Path.cwd()})")
    return Report(files, counts, troubles)


def _has_masks(content: dict[str, Any]) -> bool:
    return any(isinstance(one, dict) and one.get("segmentation") for one in content["annotations"])


def _check_objects(content: dict[str, Any], troubles: Troubles) -> None:
    annotated = {
        one["image_id"]
        for one in content["annotations"]
        if isinstance(one, dict) and is_id(one.get("image_id"))
    }
    images = [one for one in content["images"] if isinstance(one, dict) and is_id(one.get("id"))]
    bare = [one for one in images if one["id"] not in annotated]
    if len(bare) == len(images):
        troubles.add("nothing to learn", f"{len(images)} pictures, none of them has an object")
        return
    for image in bare:
        troubles.add("no objects", str(image.get("file_name")))


def _check_pictures(
    images: list[Any], folder: Path, troubles: Troubles, decode: bool, progress: Progress
) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    for image in images:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            sizes[image["file_name"]] = (image.get("height"), image.get("width"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = cores if decode else 4 * cores

    def check(name: str) -> list[tuple[str, str]]:
        size = sizes[name]
        known = all(isinstance(side, (int, float)) for side in size)
        return check_picture(folder / name, size if known else None, decode=decode)

    with ThreadPoolExecutor(workers) as pool:
        found = zip(sizes, pool.map(check, sizes))
        for name, said in progress(found, len(sizes)):
            for kind, more in said:
                troubles.add(kind, f"{name}: {more}" if more else name)
    known = {os.path.normpath(name) for name in sizes}
    for name in _pictures_below(folder, {os.path.dirname(name) for name in known}):
        if name not in known:
            troubles.add("not annotated", name)


def _pictures_below(folder: Path, parts: set[str]) -> Iterator[str]:
    """Picture files in some parts of a folder, by their path from it."""
    for part in sorted(parts):
        if not os.path.isdir(folder / part):  # no error for a name that is too long
            continue
        for name in sorted(os.listdir(folder / part)):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(part, name)
