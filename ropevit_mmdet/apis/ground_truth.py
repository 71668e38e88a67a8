"""Annotations of a COCO file as instances to render next to predictions."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from ropevit_mmdet._images import ids_by_name
from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import CHECKS, ERROR, CocoFiles
from ropevit_mmdet.datasets.validation.segmentations import segmentation_finding
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import find_image


class GroundTruth:
    """The objects of an annotation file, by image.

    Args:
        ann_file: a COCO annotation file.
        names: the class names of a detector; categories that it does not have follow them.

    Raises:
        UserError: the file does not exist or is not in COCO's format.
    """

    def __init__(self, ann_file: str | os.PathLike[str], names: Sequence[str] = ()) -> None:
        self.coco, self.ann_file = read_coco(ann_file), ann_file
        categories = {one["id"]: one["name"] for one in self.coco.dataset["categories"]}
        self.names = tuple(dict.fromkeys([*names, *categories.values()]))
        self._labels = {key: self.names.index(name) for key, name in categories.items()}
        self._images = ids_by_name(self.coco.dataset["images"])

    def count_known(self, paths: Sequence[Path]) -> int:
        """Returns how many of the images the file contains."""
        return sum(find_image(path, self._images) is not None for path in paths)

    def of(self, path: Path, size: tuple[int, int] | None = None) -> InstanceData | None:
        """Returns the objects of an image without crowd regions; None for an unknown image.

        The `file_name` of an image in the file is its path or the end of its path. Masks are run
        lengths.

        Args:
            path: the file of the image.
            size: its height and width in pixels.

        Raises:
            UserError: the file gives the image another size, or an object an invalid segmentation.
        """
        image_id = find_image(path, self._images)
        if image_id is None:
            return None
        image = self.coco.imgs[image_id]
        expected = image["height"], image["width"]
        if size and size != expected:
            sizes = " and ".join(f"{width} x {height}" for height, width in (size, expected))
            raise UserError(f"image {path} and its entry in {self.ann_file} differ: {sizes}")
        objects = [one for one in self.coco.imgToAnns[image_id] if not one.get("iscrowd")]
        objects = [one for one in objects if one["category_id"] in self._labels]
        boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([self._labels[one["category_id"]] for one in objects]).long()
        instances = InstanceData(bboxes=boxes, labels=labels)
        if objects and all(one.get("segmentation") for one in objects):
            for one in objects:
                check, details = segmentation_finding(one["segmentation"], *expected) or ("", "")
                if check and CHECKS[check].severity == ERROR:
                    raise UserError(f"image {path}: annotation {one['id']} in {self.ann_file}: "
                                    f"invalid segmentation{details}")  # fmt: skip
            instances.masks = [self.coco.annToRLE(one) for one in objects]
        return instances


def read_coco(path: str | os.PathLike[str]) -> COCO:
    """Reads and checks an annotation file; annotations need neither `id` nor `area`."""
    content = read_annotation_file(os.fspath(path))
    annotations = content.get("annotations") or []
    for index, one in enumerate(annotations):
        if isinstance(one, dict):
            annotations[index] = {"id": f"index {index}", "area": 1} | one
    findings = check_annotations(content, CocoFiles(Path(path), Path(), masks=False, trained=True))
    if findings.of(ERROR):
        raise UserError(f"annotation file {path}: {findings.summary(ERROR)}")
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco
