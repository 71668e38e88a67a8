"""All that is wrong with a dataset in COCO's format, its images included, before a run."""

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
from ropevit_mmdet.datasets.validation.findings import ERROR, NOTE, SEVERITIES, Findings, Kind
from ropevit_mmdet.datasets.validation.image_files import KINDS as IMAGE_KINDS
from ropevit_mmdet.datasets.validation.image_files import check_image

KINDS = {
    "annotation file": Kind(ERROR, "annotation file that cannot be used"),
    "image directory": Kind(ERROR, "image directory that is not there"),
    "classes": Kind(ERROR, "list of categories that does not give the config's classes"),
    "nothing to learn": Kind(ERROR, "dataset without a single object"),
    "no objects": Kind(NOTE, "images without objects: configs for COCO leave them out"),
    "not annotated": Kind(NOTE, "images in the directory that the annotations do not have"),
    **ANNOTATION_KINDS,
    **IMAGE_KINDS,
}
# Wraps an iteration over so many images, as tqdm does.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Report(NamedTuple):
    """What was found in one dataset."""

    files: CocoFiles
    counts: dict[str, int]  # of images, annotations and categories
    findings: Findings

    def lines(self, show: int = 5) -> Iterator[str]:
        """The report as text: errors first, of each kind its number and its first places."""
        counts = ", ".join(f"{number:,} {key}" for key, number in self.counts.items())
        yield f"{self.files.ann_file}, images in {self.files.img_dir}: {counts or 'not read'}"
        for severity in SEVERITIES:
            for kind in self.findings.of(severity):
                places = self.findings.places[kind]
                yield f"  {severity:8} {self.findings.kinds[kind].meaning} ({len(places):,})"
                shown = places if severity != NOTE else places[:1]
                yield from (f"{'':11}  {place}" for place in shown[:show])
                if len(places) > len(shown[:show]):
                    yield f"{'':11}  ... and {len(places) - len(shown[:show]):,} more"
        if not self.findings.places:
            yield "  nothing is wrong"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON takes it, with every place."""
        found = [
            {
                "kind": kind,
                "severity": severity,
                "meaning": self.findings.kinds[kind].meaning,
                "count": len(self.findings.places[kind]),
                "places": self.findings.places[kind],
            }
            for severity in SEVERITIES
            for kind in self.findings.of(severity)
        ]
        files = {"ann_file": str(self.files.ann_file), "img_dir": str(self.files.img_dir)}
        return {**files, **self.counts, "findings": found}

    def count(self, severity: str) -> int:
        """How many findings of one severity there are."""
        return sum(len(self.findings.places[kind]) for kind in self.findings.of(severity))


def report_dataset(
    files: CocoFiles,
    *,
    decode: bool = False,
    progress: Progress = lambda items, total: items,
) -> Report:
    """Check an annotation file and the images that it names.

    Of images only the headers are read, on several threads; with `decode` every one is decoded,
    an image at a time for each core.
    """
    findings = Findings(KINDS)
    try:
        content = read_annotation_file(files.ann_file)
    except ValueError as error:
        findings.add("annotation file", str(error))
        return Report(files, {}, findings)
    counts = {key: len(content[key]) for key in LISTS}
    if files.classes:
        try:
            check_classes(files.ann_file, content, files.classes)
        except ValueError as error:
            findings.add("classes", str(error))
    masks = _has_masks(content) if files.masks is None else files.masks
    findings.update(check_annotations(content, masks=masks, evaluated=files.evaluated))
    _check_objects(content, findings)
    if files.img_dir.is_dir():
        _check_images(content["images"], files.img_dir, findings, decode, progress)
    else:
        findings.add("image directory", f"{files.img_dir} (looked in {Path.cwd()})")
    return Report(files, counts, findings)


def _has_masks(content: dict[str, Any]) -> bool:
    return any(isinstance(one, dict) and one.get("segmentation") for one in content["annotations"])


def _check_objects(content: dict[str, Any], findings: Findings) -> None:
    annotated = {
        one["image_id"]
        for one in content["annotations"]
        if isinstance(one, dict) and is_id(one.get("image_id"))
    }
    images = [one for one in content["images"] if isinstance(one, dict) and is_id(one.get("id"))]
    bare = [one for one in images if one["id"] not in annotated]
    if len(bare) == len(images):
        findings.add("nothing to learn", f"{len(images)} images, none of them has an object")
        return
    for image in bare:
        findings.add("no objects", str(image.get("file_name")))


def _check_images(
    images: list[Any], directory: Path, findings: Findings, decode: bool, progress: Progress
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
        return check_image(directory / name, size if known else None, decode=decode)

    with ThreadPoolExecutor(workers) as pool:
        found = zip(sizes, pool.map(check, sizes))
        for name, said in progress(found, len(sizes)):
            for kind, more in said:
                findings.add(kind, f"{name}: {more}" if more else name)
    known = {os.path.normpath(name) for name in sizes}
    for name in _images_below(directory, {os.path.dirname(name) for name in known}):
        if name not in known:
            findings.add("not annotated", name)


def _images_below(directory: Path, parts: set[str]) -> Iterator[str]:
    """Image files in some parts of a directory, by their path from it."""
    for part in sorted(parts):
        if not os.path.isdir(directory / part):  # no error for a name that is too long
            continue
        for name in sorted(os.listdir(directory / part)):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(part, name)
