"""A classification set cut from a detection set: one image per object, one directory per class."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ropevit_mmdet._images import open_image

MIN_SIZE = 16  # pixels; a smaller object has hardly a patch to itself
CONTEXT = 1.1  # side of a cut, in longer sides of an object that is too large for it


def cut_objects(
    image_dir: str | os.PathLike[str],
    ann_file: str | os.PathLike[str],
    root: Path,
    *,
    side: int,
    seed: int = 0,
) -> int:
    """Writes `<root>/<class>/<annotation id>.png`, squares around the objects of a COCO set.

    ``side`` is that of every cut, in pixels. What is learnt from cuts serves a detector only at the
    scale of its images, so they are not enlarged; only an object that does not fit, with a tenth
    around it, is shrunk. An object lies within the middle half of the room that it leaves, and the
    cut within the image. Crowds and objects under 16 pixels are left out. Written whole or not at
    all; what is there already stays. Returns the number of cuts.
    """
    if root.is_dir():
        return sum(1 for _ in root.glob("*/*.png"))
    document = json.loads(Path(ann_file).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    files = {image["id"]: image["file_name"] for image in document["images"]}
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    for name in names.values():
        (partial / name).mkdir(parents=True)
    count = 0
    for annotation in document["annotations"]:
        if annotation.get("iscrowd") or max(annotation["bbox"][2:]) < MIN_SIZE:
            continue
        rng = np.random.default_rng((seed, annotation["id"]))
        with open_image(Path(image_dir) / files[annotation["image_id"]]) as image:
            cut = image.convert("RGB").crop(_square(rng, annotation["bbox"], side, image.size))
        cut = cut.resize((side, side), Image.Resampling.BICUBIC)
        cut.save(partial / names[annotation["category_id"]] / f"{annotation['id']:06d}.png")
        count += 1
    partial.rename(root)
    return count


def _square(
    rng: np.random.Generator, bbox: list[float], least: int, image: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a cut around a box (x, y, width, height), in pixels."""
    x, y, width, height = bbox
    longer = max(width, height)
    side = min(max(least, CONTEXT * longer), *image)
    reach = max(side - longer, 0) / 4
    corners = []
    for start, length, limit in ((x, width, image[0]), (y, height, image[1])):
        centre = start + length / 2 + rng.uniform(-reach, reach)
        corners.append(int(np.clip(centre - side / 2, 0, limit - side)))
    return (*corners, corners[0] + int(side), corners[1] + int(side))
