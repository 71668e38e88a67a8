"""Writes the shapes dataset: rendered images as PNG files, annotations as COCO JSON.

Masks are run-length codes, which unlike polygons are exact for occluded shapes.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ropevit_mmdet._output import output_directory
from ropevit_mmdet.datasets.conversion.labels import object_fields
from ropevit_mmdet.datasets.shapes.scene import CLASSES, MIN_SIDE, SceneObject, draw_scene
from ropevit_mmdet.errors import UserError

GENERATOR_VERSION = 2  # to be raised when the same parameters would render other images
SPLITS = ("train", "val", "test")
SUMMARY_FILE = "shapes.json"  # marks a directory as a shapes dataset


def generate(
    root: str | os.PathLike[str],
    *,
    num_train: int = 2000,
    num_val: int = 300,
    num_test: int = 300,
    size: int = 224,
    non_square: float = 0.25,
    seed: int = 0,
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes `<root>/{train,val,test}/000001.png` and `<root>/annotations/instances_*.json`.

    An image depends only on (seed, split, index, size, non_square). A dataset of the same
    parameters is kept, and one that is not complete has no `shapes.json`.

    Args:
        root: Directory to write.
        num_train: Images of the train split; `num_val` and `num_test` likewise.
        size: Longer side in pixels.
        non_square: Share of images that have three quarters of it in height or width.
        seed: Of all images.
        workers: Processes; by default the processors, at most 8.

    Returns:
        The content of `<root>/shapes.json`, with counts per split.

    Raises:
        UserError: If a parameter is out of range, or `root` contains anything else.
    """
    images = {"train": num_train, "val": num_val, "test": num_test}
    parameters: dict[str, Any] = {"generator_version": GENERATOR_VERSION, "seed": seed}
    parameters |= {"size": size, "non_square": float(non_square), "images": images}
    root = Path(root).resolve()
    if (root / SUMMARY_FILE).is_file():
        existing = json.loads((root / SUMMARY_FILE).read_text())
        if existing["parameters"] == parameters:
            return existing
    if issue := _issue(root, parameters | images):
        raise UserError(issue)
    with output_directory(root) as directory:
        splits = _write_images(directory, parameters, workers or min(8, os.cpu_count() or 1))
        content = {"parameters": parameters, "classes": list(CLASSES), "splits": splits}
        (directory / SUMMARY_FILE).write_text(json.dumps(content, indent=1) + "\n")
    return content


def _issue(root: Path, given: dict[str, Any]) -> str | None:
    """Why a dataset cannot be written."""
    minima = dict.fromkeys((*SPLITS, "seed", "non_square"), 0) | {"size": -(-MIN_SIDE * 4 // 3)}
    for name, low in minima.items():
        if given[name] < low:
            return f"{name} must be at least {low}, not {given[name]}"
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return f"{root} has other content, or shapes of other parameters: choose another directory"
    return None


def _write_images(directory: Path, parameters: dict[str, Any], workers: int) -> dict[str, Any]:
    """Renders all splits into `directory`; returns the statistics of each."""
    (directory / "annotations").mkdir()
    statistics = {}
    categories = [{"id": number, "name": name, "supercategory": "shape"}
                  for number, name in enumerate(CLASSES, start=1)]  # fmt: skip
    # A forked worker does not import the package again, and torch with it; only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    with ProcessPoolExecutor(workers, context, signal.signal, ignore_interrupt) as pool:
        for split, count in parameters["images"].items():
            (directory / split).mkdir()
            rendered = pool.map(partial(_render, directory / split, parameters), range(count),
                                chunksize=8)  # fmt: skip
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image, objects in tqdm(rendered, split, count, leave=False, disable=None):
                images.append(image)
                for one in objects:
                    ids = {"id": len(annotations) + 1, "image_id": image["id"]}
                    ids["category_id"] = one.label + 1
                    annotations.append(ids | object_fields(mask=one.mask, crowd=one.is_crowd))
            info = {"description": f"Shapes dataset, {split} split", "parameters": parameters}
            content = {"info": info, "licenses": [], "categories": categories}
            content |= {"images": images, "annotations": annotations}
            path = directory / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content, separators=(",", ":")))
            statistics[split] = _statistics(images, annotations)
    return statistics


def _render(
    directory: Path, parameters: dict[str, Any], index: int
) -> tuple[dict[str, Any], list[SceneObject]]:
    """Saves one image; returns its COCO entry and its objects."""
    rng = np.random.default_rng((parameters["seed"], SPLITS.index(directory.name), index))
    height = width = parameters["size"]
    if rng.random() < parameters["non_square"]:
        if rng.random() < 0.5:
            height = height * 3 // 4
        else:
            width = width * 3 // 4
    pixels, objects = draw_scene(rng, height, width)
    name = f"{index + 1:06d}.png"
    Image.fromarray(pixels).save(directory / name, compress_level=3)
    return {"id": index + 1, "file_name": name, "height": height, "width": width}, objects


def _statistics(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts for the summary."""
    labels = Counter(entry["category_id"] - 1 for entry in annotations if not entry["iscrowd"])
    return {
        "images": len(images),
        "empty": len(images) - len({entry["image_id"] for entry in annotations}),
        "crowds": len(annotations) - labels.total(),
        "objects": {name: labels[label] for label, name in enumerate(CLASSES)},
    }
