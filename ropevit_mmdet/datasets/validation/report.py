"""The validation report of a dataset in COCO's format, its images included."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropevit_mmdet.datasets.validation.annotations import (
    LISTS,
    check_annotations,
    classes_issue,
    read_annotation_file,
)
from ropevit_mmdet.datasets.validation.checks import CHECKS, NOTE, SEVERITIES, Findings
from ropevit_mmdet.datasets.validation.config import CocoFiles
from ropevit_mmdet.datasets.validation.image_files import check_image
from ropevit_mmdet.errors import UserError


@dataclass(frozen=True)
class Report:
    """The findings in one dataset and its number of images, annotations and categories."""

    files: CocoFiles
    counts: dict[str, int]
    findings: Findings

    def lines(self, show: int = 5) -> Iterator[str]:
        """The report as text: errors first, with the first `show` places of each check."""
        counts = ", ".join(f"{count:,} {key}" for key, count in self.counts.items())
        yield f"{self.files.ann_file}, images in {self.files.img_dir}: {counts or 'not read'}"
        for name, places in self._sorted():
            severity, message, fix = CHECKS[name]
            yield f"  {severity:8} {message} ({len(places):,}); fix: {fix}"
            shown = places[: 1 if severity == NOTE else show]
            yield from (f"{'':11}  {place}" for place in shown)
            if len(places) > len(shown):
                yield f"{'':11}  ... and {len(places) - len(shown):,} more"
        if not self.findings.places:
            yield "  no findings"

    def as_json(self) -> dict[str, Any]:
        """The report with all places, as JSON accepts it."""
        findings = [
            {"check": name, **CHECKS[name]._asdict(), "count": len(places), "places": places}
            for name, places in self._sorted()
        ]
        files = {"ann_file": str(self.files.ann_file), "img_dir": str(self.files.img_dir)}
        return {**files, **self.counts, "findings": findings}

    def _sorted(self) -> list[tuple[str, list[str]]]:
        items = self.findings.places.items()
        return sorted(items, key=lambda item: SEVERITIES.index(CHECKS[item[0]].severity))


def report_dataset(
    files: CocoFiles, *, decode: bool = False, progress: Callable[[], Any] = lambda: None
) -> Report:
    """Checks an annotation file and its images; without `decode` only their headers are read."""
    try:
        content = read_annotation_file(files.ann_file)
    except UserError as error:
        findings = Findings()
        findings.add("annotation file", str(error))
        return Report(files, {}, findings)
    entries = [one for one in content["annotations"] if isinstance(one, dict)]
    masks = files.masks
    if masks is None:
        masks = any(one.get("segmentation") for one in entries)
    findings = check_annotations(content, masks=masks, evaluated=files.evaluated)
    issue = classes_issue(content, files.classes)
    if issue:
        findings.add("classes", issue)
    images = [one for one in content["images"]
              if isinstance(one, dict) and isinstance(one.get("file_name"), str)]  # fmt: skip
    annotated = {str(one.get("image_id")) for one in entries}
    empty = [image["file_name"] for image in images if str(image.get("id")) not in annotated]
    if len(empty) == len(images):
        findings.add("nothing to learn", f"{len(images)} images")
    for name in empty:
        findings.add("no objects", name)
    if files.img_dir.is_dir():
        _check_images(images, files.img_dir, findings, decode, progress)
    else:
        findings.add("image directory", f"{files.img_dir} (current directory: {Path.cwd()})")
    return Report(files, {key: len(content[key]) for key in LISTS}, findings)


def _check_images(
    images: list[dict[str, Any]],
    directory: Path,
    findings: Findings,
    decode: bool,
    progress: Callable[[], Any],
) -> None:
    def check(image: dict[str, Any]) -> list[tuple[str, str]]:
        height, width = image.get("height"), image.get("width")
        size = (height, width) if height and width else None
        return check_image(directory / image["file_name"], size, decode=decode)

    with ThreadPoolExecutor((os.cpu_count() or 1) * (1 if decode else 4)) as pool:
        for image, failed in zip(images, pool.map(check, images)):
            for name, details in failed:
                findings.add(name, image["file_name"] + (f": {details}" if details else ""))
            progress()
