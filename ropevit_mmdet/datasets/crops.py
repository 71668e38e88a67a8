"""A classification set cut from a detection set: one picture per object, one folder per class."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

MIN_SIZE = 16  # pixels; a smaller object is a smudge when it is enlarged
CONTEXT = (1.05, 1.35)  # side of a cut, in longer sides of its object


def cut_objects(
    pictures: str | os.PathLike[str], ann_file: str | os.PathLike[str], root: Path, *, seed: int = 0
) -> int:
    """Writes `<root>/<class>/<annotation id>.png`, squares around the objects of a COCO set.

    Crowds and objects under 16 pixels are left out. A square is 1.05 to 1.35 times as wide as the
    object is long, its centre up to a quarter of what is left away from the object's, moved and
    shrunk to lie within the picture. Written whole or not at all; what is there already stays.
    Returns the number of cuts.
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
        with Image.open(Path(pictures) / files[annotation["image_id"]]) as picture:
            cut = picture.convert("RGB").crop(_square(rng, annotation["bbox"], picture.size))
        cut.save(partial / names[annotation["category_id"]] / f"{annotation['id']:06d}.png")
        count += 1
    partial.rename(root)
    return count


def _square(
    rng: np.random.Generator, bbox: list[float], picture: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a cut around a box (x, y, width, height), in pixels."""
    x, y, width, height = bbox
    longer = max(width, height)
    side = min(longer * np.exp(rng.uniform(*np.log(CONTEXT))), *picture)
    reach = max(side - longer, 0) / 4
    corners = []
    for start, length, limit in ((x, width, picture[0]), (y, height, picture[1])):
        centre = start + length / 2 + rng.uniform(-reach, reach)
        corners.append(int(np.clip(centre - side / 2, 0, limit - side)))
    return (*corners, corners[0] + int(side), corners[1] + int(side))
