"""A classification dataset cropped from a detection dataset: one image per object."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ropevit_mmdet._images import locate_images

MIN_SIZE = 16  # pixels; smaller objects cover hardly more than one patch
CONTEXT = 1.1  # side of a crop around an object that is too large, in longer sides of the object


def crop_objects(image_dir: Path, ann_file: Path, root: Path, *, side: int) -> None:
    """Writes `<root>/<class>/<annotation id>.png`, crops of `side` pixels at the images' scale.

    Only a crop of a larger object is shrunk. An existing `root` is kept as it is.
    """
    if root.is_dir():
        return
    document = json.loads(ann_file.read_text(encoding="utf-8"))
    classes = {category["id"]: category["name"] for category in document["categories"]}
    names = {image["id"]: image["file_name"] for image in document["images"]}
    files = locate_images(image_dir, [*names.values()])
    partial = root.with_name(f".{root.name}.partial")
    for name in classes.values():
        (partial / name).mkdir(parents=True, exist_ok=True)
    for annotation in document["annotations"]:
        if annotation.get("iscrowd") or max(annotation["bbox"][2:]) < MIN_SIZE:
            continue
        rng = np.random.default_rng((0, annotation["id"]))
        with Image.open(files[names[annotation["image_id"]]]) as image:
            crop = image.convert("RGB").crop(_square(rng, annotation["bbox"], side, image.size))
        crop = crop.resize((side, side), Image.Resampling.BICUBIC)
        crop.save(partial / classes[annotation["category_id"]] / f"{annotation['id']:06d}.png")
    partial.rename(root)


def _square(
    rng: np.random.Generator, bbox: list[float], side: int, image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop around a box (x, y, width, height), in pixels."""
    x, y, width, height = bbox
    longer = max(width, height)
    side = min(max(side, CONTEXT * longer), *image_size)
    max_shift = max(side - longer, 0) / 4
    corner = []
    for start, length, limit in ((x, width, image_size[0]), (y, height, image_size[1])):
        center = start + length / 2 + rng.uniform(-max_shift, max_shift)
        corner.append(int(np.clip(center - side / 2, 0, limit - side)))
    return (*corner, corner[0] + int(side), corner[1] + int(side))
