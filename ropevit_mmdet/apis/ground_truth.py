"""Annotations of a COCO file as objects to draw beside what a detector found."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.findings import ERROR
from ropevit_mmdet.datasets.validation.segmentations import segmentation_finding
from ropevit_mmdet.visualization.overlays import Detection


class GroundTruth:
    """The objects of an annotation file, by image.

    Labels are positions in `names`: those of the detector, so that colors agree, then the
    categories of the file that the detector does not know. Raises ValueError for a file that is
    not there or not in COCO's format.
    """

    def __init__(self, ann_file: str | os.PathLike[str], names: Sequence[str] = ()) -> None:
        self.ann_file = ann_file
        self.coco = read_coco(ann_file)
        categories = {cat["id"]: cat["name"] for cat in self.coco.dataset["categories"]}
        self.names = tuple(dict.fromkeys([*names, *categories.values()]))
        self._labels = {key: self.names.index(name) for key, name in categories.items()}
        self._images = {Path(image["file_name"]): image for image in self.coco.dataset["images"]}

    def count_known(self, paths: Sequence[Path]) -> int:
        """How many of the images the file has; raises ValueError if none."""
        known = sum(self._image(path) is not None for path in paths)
        if not known:
            raise ValueError(
                f"annotation file {self.ann_file} has none of the images: their file names are "
                f"such as {str(next(iter(self._images), '(none)'))!r} there"
            )
        return known

    def of(self, path: Path, size: tuple[int, int]) -> list[Detection] | None:
        """The objects of an image of `size` (height, width); None if the file has no such image.

        An image is known by its `file_name`, which may be its name alone or with some of its
        directories. Crowd regions are left out, as in evaluation. Raises ValueError if the file says
        another size.
        """
        image = self._image(path)
        if image is None:
            return None
        if (image["height"], image["width"]) != tuple(size):
            raise ValueError(
                f"{self.ann_file} has {path} as {image['width']} x {image['height']} pixels, "
                f"the image has {size[1]} x {size[0]}"
            )
        annotations = self.coco.imgToAnns.get(image["id"], [])
        known = (one for one in annotations if one["category_id"] in self._labels)
        return [self._detection(one) for one in known if not one.get("iscrowd")]

    def _image(self, path: Path) -> dict[str, Any] | None:
        """The entry whose `file_name` is a path as it is, or the longest end of it."""
        parts = Path(os.path.abspath(path)).parts  # a link has its own name
        ends = (path, *(Path(*parts[start:]) for start in range(len(parts))))
        return next((self._images[end] for end in ends if end in self._images), None)

    def _detection(self, annotation: dict[str, Any]) -> Detection:
        x, y, width, height = annotation["bbox"]
        mask = None
        if annotation.get("segmentation"):
            self._check_mask(annotation)
            mask = self.coco.annToMask(annotation).astype(bool)
        label = self._labels[annotation["category_id"]]
        return Detection((x, y, x + width, y + height), label, None, mask)

    def _check_mask(self, annotation: dict[str, Any]) -> None:
        image = self.coco.imgs[annotation["image_id"]]
        found = segmentation_finding(annotation["segmentation"], image["height"], image["width"])
        if found:
            kind, said = found
            raise ValueError(
                f"{self.ann_file}: the segmentation of annotation {annotation.get('id')} of "
                f"{image['file_name']} cannot be drawn ({kind}{said})"
            )


def read_coco(path: str | os.PathLike[str]) -> COCO:
    """An annotation file; raises ValueError if it is not there or not in COCO's format."""
    content = read_annotation_file(path)
    findings = check_annotations(content, masks=False, drawn=True)
    if findings.of(ERROR):
        raise ValueError(f"annotation file {path}: {findings.summary(ERROR)}")
    for number, one in enumerate(content.get("annotations") or ()):
        one.setdefault("id", f"number {number}")  # the index wants one
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco.createIndex()
    return coco
