"""The validation report of a dataset in COCO's format, its images included."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ropevit_mmdet.datasets.validation.annotations import (
    LISTS,
    SINGULAR,
    check_annotations,
    read_annotation_file,
)
from ropevit_mmdet.datasets.validation.checks import (
    CHECKS,
    NOTE,
    SEVERITIES,
    CocoFiles,
    Findings,
)
from ropevit_mmdet.datasets.validation.config import image_files
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
        names = {key: SINGULAR[key] if count == 1 else key for key, count in self.counts.items()}
        counts = ", ".join(f"{self.counts[key]:,} {name}" for key, name in names.items())
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


def report_dataset(files: CocoFiles, *, decode: bool = False, title: str = "images") -> Report:
    """Checks an annotation file and its images; without `decode` only their headers are read."""
    findings = Findings()
    try:
        content = read_annotation_file(files.ann_file, ("images",))
    except UserError as error:
        findings.add("annotation file", str(error))
        return Report(files, {}, findings)
    content = {key: content.get(key, []) for key in LISTS if key in content or key == LISTS[2]}
    entries = [one for one in content.get("annotations", ()) if isinstance(one, dict)]
    if files.masks is None:
        files = files._replace(masks=any(one.get("segmentation") for one in entries))
    required = bool("annotations" in content or files.trained)
    findings = check_annotations(content, files, required)
    images = [one for one in content["images"] if isinstance(one, dict)]
    if required:
        annotated = {str(one.get("image_id")) for one in entries}
        for one in images:
            if str(one.get("id")) not in annotated:
                findings.add("no objects", str(one.get("file_name")))
    else:
        findings.add("no annotations", f"{len(images):,} images")
    directory, paths = image_files(content, files, findings)
    if not directory.is_dir():
        findings.add("image directory", f"{directory} (current directory: {Path.cwd()})")
        images = []

    def check(image: dict[str, Any]) -> list[tuple[str, str]]:
        height, width = image.get("height"), image.get("width")
        size = (height, width) if height and width else None
        return check_image(paths[image["file_name"]], size, decode=decode)

    images = [one for one in images if one.get("file_name") in paths]
    with ThreadPoolExecutor((os.cpu_count() or 1) * (1 if decode else 4)) as pool:
        failed = pool.map(check, images)
        for one, checks in zip(tqdm(images, title, disable=None, leave=False), failed):
            name = one["file_name"]
            for check_name, details in checks:
                findings.add(check_name, name + (f": {details}" if details else ""))
    counts = {key: len(content[key]) for key in LISTS if key in content}
    return Report(files._replace(img_dir=directory), counts, findings)
