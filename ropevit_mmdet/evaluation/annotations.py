"""The annotations with which detections are compared."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ropevit_mmdet._images import ids_by_name
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.result_file import Detections

Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]


class Annotations:
    """Annotations by image id; labels are positions in `names`, the classes of the detector.

    Attributes:
        image_ids: The images that count, by default all.
    """

    def __init__(self, coco: COCO, names: Sequence[str]) -> None:
        ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
        missing = [name for name in names if name not in ids]
        if missing:
            raise UserError(f"the annotations have no class {missing[0]!r}, but {', '.join(ids)}")
        self.coco, self.names = coco, tuple(names)
        self.category_ids = [ids[name] for name in names]
        self.image_ids: list[Any] = [*coco.imgs]

    def of(self, image_id: int) -> Boxes:
        """Boxes (x, y, width, height) [M, 4], labels [M] and crowd flags [M] of an image."""
        objects = self._objects(image_id)
        boxes = np.array([one["bbox"] for one in objects], np.float64).reshape(-1, 4)
        labels = [self.category_ids.index(one["category_id"]) for one in objects]
        crowd = np.array([one.get("iscrowd", 0) for one in objects], bool)
        return boxes, np.array(labels, np.int64), crowd

    def have_masks(self) -> bool:
        """Whether all objects have masks."""
        return all(one.get("segmentation") for one in self.coco.dataset["annotations"])

    def masks(self, image_id: int) -> list[dict[str, Any]]:
        """Run lengths of the masks of the M objects; [] if any has none."""
        objects = self._objects(image_id)
        complete = all(one.get("segmentation") for one in objects)
        return [self.coco.annToRLE(one) for one in objects] if complete else []

    def match(self, results: Mapping[Hashable, Detections]) -> dict[Hashable, Detections]:
        """The detections of `read_results` by image id, with labels."""
        labels = dict(zip((*self.category_ids, *self.names), 2 * [*range(len(self.names))]))
        files = ids_by_name(self.coco.imgs.values())
        matched: dict[Hashable, Detections] = {}
        for image, found in results.items():
            image_id = find_image(image, files) if isinstance(image, str) else image
            unknown = [f"a category {key!r}" for key in found.labels if key not in labels]
            if image_id not in self.coco.imgs:
                unknown.append(f"an image {image!r}")
            if unknown:
                raise UserError(f"the results have {unknown[0]} that the annotations lack")
            of_image = np.array([labels[key] for key in found.labels], np.int64)
            matched[image_id] = found._replace(labels=of_image)
        return matched

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        objects = self.coco.imgToAnns.get(image_id, [])
        return [one for one in objects if one["category_id"] in self.category_ids]


def find_image(file: str | Path, ids: Mapping[Path, Any]) -> Any:
    """The id of the entry whose `file_name` is a path, or the longest end of it; else None."""
    parts = Path(os.path.abspath(file)).parts  # does not resolve links
    ends = (Path(file), *(Path(*parts[start:]) for start in range(len(parts))))
    return next((ids[end] for end in ends if end in ids), None)
