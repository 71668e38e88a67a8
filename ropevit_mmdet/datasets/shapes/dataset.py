"""Write the shapes dataset: drawn images with instance masks, as PNG files and COCO JSON.

The annotations follow the COCO format (Lin et al., arXiv 1405.0312), every mask as an uncompressed
run-length code, which unlike a polygon is exact for what is left of an occluded shape. Read them
with mmdet's `LoadAnnotations(with_mask=True)` and its default `poly2mask=True`.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ropevit_mmdet.datasets.shapes.scene import CLASSES, MIN_SIDE, SceneObject, draw_scene

GENERATOR_VERSION = 2  # raise it whenever the same parameters would draw other images
SPLITS = ("train", "val", "test")
SUMMARY_FILE = "shapes.json"  # its presence marks a directory as ours
DEFAULT_MAX_WORKERS = 8

Task = tuple[int, int, int, int, float, Path]  # seed, split, index, size, non_square, directory
Drawn = tuple[dict[str, Any], list[dict[str, Any]]]  # COCO image, its annotations without ids


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
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `<root>/{train,val,test}/000001.png` and `<root>/annotations/instances_*.json`.

    Images are `size` x `size` pixels; a share of `non_square` of them is cut to three quarters
    in height or in width. Every image is drawn from (seed, split, index) alone: the number of
    `workers` (processes; default: the processors, at most 8) changes no byte.
    `progress(done, total)` is called after each image. All is written beside `root` and renamed
    when it is complete.

    A complete dataset of the same parameters in `root` is left as it is, unless `overwrite`.
    Returns what `<root>/shapes.json` holds, counts per split among it, and `"reused"`: whether it
    was there already.

    Raises ValueError for a parameter out of range, and FileExistsError when `root` holds something
    else; with `overwrite` only when that was not made by this generator.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    _check_parameters(counts, size, non_square, seed, workers)
    parameters = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size": size,
        "non_square": float(non_square),
        "images": counts,
    }
    root = Path(root).resolve()
    existing = _existing(root, parameters, overwrite)
    if existing is not None:
        return existing | {"reused": True}

    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        splits = _write_images(partial, parameters, workers or _default_workers(), progress)
        summary = {"parameters": parameters, "classes": list(CLASSES), "splits": splits}
        (partial / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        _move_into_place(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already unless something failed
    return summary | {"reused": False}


def encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """The uncompressed COCO run-length code of a mask [H, W]: column by column, zeros first."""
    flat = np.concatenate(([False], mask.ravel(order="F"), [False]))
    flips = np.flatnonzero(flat[1:] != flat[:-1])
    ends = flips if flips.size and flips[-1] == mask.size else np.append(flips, mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def _check_parameters(
    counts: dict[str, int], size: int, non_square: float, seed: int, workers: int | None
) -> None:
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"num_{split} must not be negative, got {count}")
    if size * 3 // 4 < MIN_SIDE:
        least = -(-MIN_SIDE * 4 // 3)
        raise ValueError(f"size must be at least {least} pixels, got {size}")
    if not 0 <= non_square <= 1:
        raise ValueError(f"non_square is a share between 0 and 1, got {non_square}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _existing(root: Path, parameters: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The summary of the dataset in `root` if it is the wanted one, None if it is to be made."""
    if not root.exists():
        return None
    if not root.is_dir():
        raise FileExistsError(f"{root} is a file; the dataset needs a directory")
    if not any(root.iterdir()):
        return None
    if not (root / SUMMARY_FILE).is_file():
        raise FileExistsError(
            f"{root} holds something that is not a shapes dataset ({SUMMARY_FILE} is missing): "
            "choose another directory, or remove it yourself"
        )
    if overwrite:
        return None
    try:
        summary = json.loads((root / SUMMARY_FILE).read_text(encoding="utf-8"))
        found = summary["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{root / SUMMARY_FILE} is damaged: overwrite it") from error
    if found != parameters:
        raise FileExistsError(
            f"{root} holds a shapes dataset of other parameters: {json.dumps(found)}, wanted "
            f"{json.dumps(parameters)}: overwrite it, or choose another directory"
        )
    for split, count in parameters["images"].items():
        images = len(list((root / split).glob("*.png")))
        if images != count or not _annotation_file(root, split).is_file():
            raise FileExistsError(
                f"{root} is not complete: {split} has {images} of {count} images, or no "
                "annotations: overwrite it"
            )
    return summary


def _move_into_place(partial: Path, root: Path) -> None:
    """Rename `partial` to `root`; what `root` held before is deleted only after that."""
    old = root.with_name(f".{root.name}.old-{os.getpid()}")
    if root.exists():
        root.rename(old)
    try:
        partial.rename(root)
    except OSError:
        if old.exists():
            old.rename(root)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_images(
    directory: Path,
    parameters: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Draw all splits into `directory`; returns the statistics of each."""
    tasks = []
    for number, split in enumerate(SPLITS):
        (directory / split).mkdir()
        tasks += [
            (
                parameters["seed"],
                number,
                index,
                parameters["size"],
                parameters["non_square"],
                directory,
            )
            for index in range(parameters["images"][split])
        ]
    (directory / "annotations").mkdir()
    statistics = {}
    drawn = _draw_all(tasks, workers)
    done = 0
    for split in SPLITS:
        images, annotations = [], []
        for image, objects in islice(drawn, parameters["images"][split]):
            images.append(image)
            for entry in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **entry})
            done += 1
            if progress is not None:
                progress(done, len(tasks))
        _write_annotations(directory, split, parameters, images, annotations)
        statistics[split] = _statistics(images, annotations)
    return statistics


def _draw_all(tasks: list[Task], workers: int) -> Iterator[Drawn]:
    """Draw and save every task's image, in order."""
    if workers == 1 or len(tasks) < 2:
        yield from map(_draw_and_save, tasks)
        return
    # A forked worker need not import the package, and torch with it; only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, context, initializer=_ignore_interrupt) as pool:
        yield from pool.map(_draw_and_save, tasks, chunksize=8)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw_and_save(task: Task) -> Drawn:
    seed, split, index, size, non_square, directory = task
    rng = np.random.default_rng((seed, split, index))
    height = width = size
    if rng.random() < non_square:
        if rng.random() < 0.5:
            height = size * 3 // 4
        else:
            width = size * 3 // 4
    pixels, objects = draw_scene(rng, height, width)
    name = f"{index + 1:06d}.png"
    Image.fromarray(pixels).save(directory / SPLITS[split] / name, compress_level=3)
    image = {"id": index + 1, "file_name": name, "height": height, "width": width}
    return image, [_annotation(thing) for thing in objects]


def _annotation(thing: SceneObject) -> dict[str, Any]:
    rows = np.flatnonzero(thing.mask.any(axis=1)).tolist()
    columns = np.flatnonzero(thing.mask.any(axis=0)).tolist()
    return {
        "category_id": thing.label + 1,
        "iscrowd": int(thing.is_crowd),
        "bbox": [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1],
        "area": int(thing.mask.sum()),
        "segmentation": encode_mask(thing.mask),
    }


def _write_annotations(
    directory: Path,
    split: str,
    parameters: dict[str, Any],
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
) -> None:
    content = {
        "info": {
            "description": f"Drawn shapes, {split} split",
            "version": str(GENERATOR_VERSION),
            "parameters": parameters,
        },
        "licenses": [],
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "shape"}
            for label, name in enumerate(CLASSES)
        ],
        "images": images,
        "annotations": annotations,
    }
    text = json.dumps(content, separators=(",", ":"))
    _annotation_file(directory, split).write_text(text, encoding="utf-8")


def _annotation_file(directory: Path, split: str) -> Path:
    return directory / "annotations" / f"instances_{split}.json"


def _statistics(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts for the summary; small, medium and large are COCO's (32 and 96 pixels squared)."""
    single = [entry for entry in annotations if not entry["iscrowd"]]
    labels = Counter(CLASSES[entry["category_id"] - 1] for entry in single)
    sizes = Counter(
        "small" if entry["area"] < 32**2 else "medium" if entry["area"] < 96**2 else "large"
        for entry in single
    )
    return {
        "images": len(images),
        "empty": len(images) - len({entry["image_id"] for entry in annotations}),
        "crowds": len(annotations) - len(single),
        "objects": {name: labels[name] for name in CLASSES},
        "sizes": {name: sizes[name] for name in ("small", "medium", "large")},
    }


def _default_workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(DEFAULT_MAX_WORKERS, len(os.sched_getaffinity(0)))
    return min(DEFAULT_MAX_WORKERS, os.cpu_count() or 1)
