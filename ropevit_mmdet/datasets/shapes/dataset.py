"""Writes the shapes dataset: rendered images as PNG files, annotations as COCO JSON.

Masks are uncompressed run-length codes, which unlike polygons are exact for occluded shapes.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
    overwrite: bool = False,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Writes `<root>/{train,val,test}/000001.png` and `<root>/annotations/instances_*.json`.

    An image depends only on (seed, split, index, size, non_square). All files are written next to
    `root` and moved there at once. A complete dataset of the same parameters is reused.

    Args:
        root: Directory to write.
        num_train: Images of the train split; `num_val` and `num_test` likewise.
        size: Longer side in pixels.
        non_square: Share of images that have three quarters of it in height or width.
        seed: Of all images.
        workers: Processes; by default the processors, at most 8.
        overwrite: Replace another shapes dataset.
        progress: Called after each image.

    Returns:
        The content of `<root>/shapes.json`, with counts per split, and `"reused"`.

    Raises:
        UserError: If a parameter is out of range, or `root` contains anything else.
    """
    images = {"train": num_train, "val": num_val, "test": num_test}
    parameters: dict[str, Any] = {"generator_version": GENERATOR_VERSION, "seed": seed}
    parameters |= {"size": size, "non_square": float(non_square), "images": images}
    root = Path(root).resolve()
    issue = _parameter_issue(parameters, workers) or _directory_issue(root, parameters, overwrite)
    if issue:
        raise UserError(issue)
    if (root / SUMMARY_FILE).is_file() and not overwrite:
        return _read_summary(root) | {"reused": True}
    written = root.with_name(f".{root.name}.partial-{os.getpid()}")
    written.mkdir(parents=True)
    try:
        splits = _write_images(
            written, parameters, workers or min(8, os.cpu_count() or 1), progress
        )
        summary = {"parameters": parameters, "classes": list(CLASSES), "splits": splits}
        (written / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n")
        if root.exists():
            shutil.rmtree(root)
        written.rename(root)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return summary | {"reused": False}


def encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """The uncompressed COCO run-length code of a mask [H, W]: column by column, zeros first."""
    flat = np.concatenate(([False], mask.ravel(order="F")))
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(starts, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _parameter_issue(parameters: dict[str, Any], workers: int | None) -> str | None:
    minima = {f"num_{split}": (count, 0) for split, count in parameters["images"].items()}
    minima |= {"size": (parameters["size"], -(-MIN_SIDE * 4 // 3)), "seed": (parameters["seed"], 0)}
    minima |= {"workers": (1 if workers is None else workers, 1)}
    for name, (value, low) in minima.items():
        if value < low:
            return f"{name} must be at least {low}, not {value}"
    if not 0 <= parameters["non_square"] <= 1:
        return f"non_square must be at least 0, at most 1, not {parameters['non_square']}"
    return None


def _directory_issue(root: Path, parameters: dict[str, Any], overwrite: bool) -> str | None:
    """Why the dataset cannot be written to `root`, nor reused."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    if not (root / SUMMARY_FILE).is_file():
        return f"{root} is not a shapes dataset: choose another directory"
    if overwrite:
        return None
    existing = _read_summary(root)["parameters"]
    if existing != parameters:
        return (
            f"{root} is a shapes dataset with other parameters: {json.dumps(existing)}, expected "
            f"{json.dumps(parameters)}: choose another directory, or --overwrite it"
        )
    for split, count in parameters["images"].items():
        images = len(list((root / split).glob("*.png")))
        if images != count:
            return f"{root} is incomplete: {split} has {images} of {count} images: --overwrite it"
    return None


def _read_summary(root: Path) -> dict[str, Any]:
    text = (root / SUMMARY_FILE).read_text()
    return json.loads(text.replace('"pictures"', '"images"'))  # the key up to version 0.1


def _write_images(
    directory: Path, parameters: dict[str, Any], workers: int, progress: Callable[[], Any]
) -> dict[str, Any]:
    """Renders all splits into `directory`; returns the statistics of each."""
    (directory / "annotations").mkdir()
    statistics = {}
    # A forked worker does not import the package again, and torch with it; only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    with ProcessPoolExecutor(workers, context, signal.signal, ignore_interrupt) as pool:
        for split, count in parameters["images"].items():
            (directory / split).mkdir()
            render = partial(_render, directory / split, parameters)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image, objects in pool.map(render, range(count), chunksize=8):
                images.append(image)
                for one in objects:
                    ids = {"id": len(annotations) + 1, "image_id": image["id"]}
                    annotations.append(ids | _annotation(one))
                progress()
            content = _document(split, parameters) | {"images": images, "annotations": annotations}
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


def _annotation(one: SceneObject) -> dict[str, Any]:
    rows = np.flatnonzero(one.mask.any(axis=1)).tolist()
    columns = np.flatnonzero(one.mask.any(axis=0)).tolist()
    return {
        "category_id": one.label + 1,
        "iscrowd": int(one.is_crowd),
        "bbox": [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1],
        "area": int(one.mask.sum()),
        "segmentation": encode_mask(one.mask),
    }


def _document(split: str, parameters: dict[str, Any]) -> dict[str, Any]:
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in enumerate(CLASSES, start=1)
    ]
    info = {"description": f"Shapes dataset, {split} split", "parameters": parameters}
    return {"info": info, "licenses": [], "categories": categories}


def _statistics(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts for the summary."""
    labels = Counter(entry["category_id"] - 1 for entry in annotations if not entry["iscrowd"])
    return {
        "images": len(images),
        "empty": len(images) - len({entry["image_id"] for entry in annotations}),
        "crowds": len(annotations) - labels.total(),
        "objects": {name: labels[label] for label, name in enumerate(CLASSES)},
    }
