"""Reads detections in COCO's result format, as `ropevit test` and `ropevit predict` write them."""

import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ropevit_mmdet.errors import UserError


@dataclass(frozen=True)
class ImageResult:
    """The N detections in an image.

    Attributes:
        image: Id of the image in the annotation file, or its file name.
        boxes: (x, y, width, height) in pixels, [N, 4].
        categories: Ids of the annotation file, or class names.
        scores: [N].
        masks: Run lengths of N masks; () if any has none.
    """

    image: Hashable
    boxes: np.ndarray
    categories: list[Hashable]
    scores: np.ndarray
    masks: Sequence[dict[str, Any]] = ()


def read_results(path: str | os.PathLike[str]) -> tuple[list[ImageResult], tuple[str, ...]]:
    """Reads detections, by image.

    Args:
        path: A JSON file: a list of results with `image_id`, `category_id`, `bbox` and `score`,
            with the ids of the annotation file; or a dictionary with such `annotations`, whose
            `images` and `categories` are matched by name.

    Returns:
        The images of a list that have detections, or all `images` of a dictionary; and the names of
        its `categories`, () for a list.

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
        by_image: dict[Hashable, list] = {file: [] for file in files.values()}
        for one in content:
            category = names.get(one["category_id"], one["category_id"])
            fields = one["bbox"], category, one["score"], one.get("segmentation")
            by_image.setdefault(files.get(one["image_id"], one["image_id"]), []).append(fields)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} has no COCO results, as `ropevit test --out FILE.json` writes them: {error!r}"
        ) from error
    results = []
    for image, detections in by_image.items():
        boxes, categories, scores, masks = zip(*detections) if detections else ((), (), (), ())
        masks = masks if all(isinstance(mask, dict) for mask in masks) else ()
        array = np.array(boxes, float).reshape(-1, 4)
        if masks and not array.any():  # some detectors predict only masks
            array = rle.toBbox([*masks])
        results.append(ImageResult(image, array, [*categories], np.array(scores, float), masks))
    return results, tuple(names.values())
