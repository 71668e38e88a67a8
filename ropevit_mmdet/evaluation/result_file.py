"""Reads detections in COCO's result format, as `ropevit test` and `ropevit predict` write them."""

import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet.errors import UserError


class Detections(NamedTuple):
    """The N detections in an image: their labels; in a file, ids or names of their categories."""

    boxes: np.ndarray = np.zeros((0, 4))  # x, y, width, height in pixels [N, 4]
    labels: np.ndarray = np.zeros(0, np.int64)
    scores: np.ndarray = np.zeros(0)
    masks: Sequence[dict[str, Any]] = ()  # run lengths; () if any has none

    def select(self, kept: Sequence[int]) -> "Detections":
        """Those of some indices."""
        masks = [self.masks[index] for index in kept] if self.masks else ()
        return Detections(self.boxes[kept], self.labels[kept], self.scores[kept], masks)


def read_results(
    path: str | os.PathLike[str],
) -> tuple[dict[Hashable, Detections], tuple[str, ...]]:
    """Reads detections, by image.

    Args:
        path: A JSON file: a list of results with `image_id`, `category_id`, `bbox` and `score`,
            with the ids of the annotation file; or a dictionary with such `annotations`, whose
            `images` and `categories` are matched by name.

    Returns:
        Of a list the detections by image id, and (). Of a dictionary those of all its `images` by
        file name, and the names of its `categories`.

    Raises:
        UserError: If the file does not exist or has another content.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        files: dict[Hashable, str] = {}
        names: dict[Hashable, str] = {}
        if isinstance(content, dict):
            files = {one["id"]: one["file_name"] for one in content["images"]}
            names = {one["id"]: one["name"] for one in content["categories"]}
            content = content["annotations"]
        by_image: dict[Hashable, list[tuple]] = {file: [] for file in files.values()}
        for one in content:
            category = names.get(one["category_id"], one["category_id"])
            fields = one["bbox"], category, one["score"], one.get("segmentation")
            by_image.setdefault(files.get(one["image_id"], one["image_id"]), []).append(fields)
        results = {image: _detections(rows) for image, rows in by_image.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} has no COCO results, as `ropevit test --out FILE.json` writes them: {error!r}"
        ) from error
    return results, tuple(names.values())


def _detections(rows: list[tuple]) -> Detections:
    boxes, labels, scores, masks = zip(*rows) if rows else ((), (), (), ())
    masks = masks if all(isinstance(mask, dict) for mask in masks) else ()
    array = np.array(boxes, float).reshape(len(rows), 4)
    if masks and not array.any():  # some detectors predict only masks
        array = rle.toBbox([*masks])
    return Detections(array, np.array(labels, object), np.array(scores, float), masks)
