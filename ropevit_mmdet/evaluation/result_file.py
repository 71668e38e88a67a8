"""Reads what `tools/test.py --out RESULT.pkl` wrote, without running anything that is in it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropevit_mmdet.compat.plain_pickle import unpickle
from ropevit_mmdet.compat.reading import local_file


@dataclass(frozen=True)
class ImageResult:
    """What was found in an image, by its id in the annotations: N boxes (x1, y1, x2, y2)."""

    image_id: int
    boxes: np.ndarray  # [N, 4], pixels
    labels: np.ndarray  # [N]
    scores: np.ndarray  # [N]


def read_results(path: str | os.PathLike[str]) -> list[ImageResult]:
    """The boxes of all images; raises ValueError for a file of another kind or truncated."""
    named, path = path, local_file(path)
    if path is None:
        raise ValueError(f"result file {named} does not exist; tools/test.py --out writes one")
    content = unpickle(path.read_bytes(), f"result file {path}")
    if not isinstance(content, list) or not content:
        raise ValueError(f"result file {path} holds no list of images, as test.py --out writes")
    return [_image(path, entry) for entry in content]


def _image(path: Path, entry: Any) -> ImageResult:
    try:
        found = entry["pred_instances"]
        boxes, labels, scores = (
            np.asarray(found[key], dtype) for key, dtype in
            (("bboxes", np.float64), ("labels", np.int64), ("scores", np.float64))
        )  # fmt: skip
        return ImageResult(int(entry["img_id"]), boxes.reshape(-1, 4), labels, scores)
    except (TypeError, ValueError, OverflowError, LookupError, RuntimeError) as error:
        raise ValueError(f"result file {path} holds no boxes of images: {error!r}") from error
