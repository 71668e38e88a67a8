"""COCO annotations with one defect each; see also malformed_images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle

CLASSES = ("circle", "square", "triangle", "star", "ring")
HEIGHT, WIDTH = 84, 112  # of the valid images
NAN = float("nan")
Document = dict[str, Any]


class Case(NamedTuple):
    """One defect: how to cause it, the check that reports it, and how a run ends."""

    spoil: Callable[..., None]
    check: str  # reported for training; empty: none
    stops: str | None = None  # pattern of the training's error; None: it trains
    refused: str | None = None  # the check for which only an evaluation is refused


def document(num_images: int = 3) -> Document:
    """A valid annotation file: two objects in each image, with polygons."""
    images, annotations = [], []
    for number in range(1, num_images + 1):
        images.append(dict(id=number, file_name=f"{number}.png", height=HEIGHT, width=WIDTH))
        for x, label in ((10, number % 5), (56, (number + 1) % 5)):
            polygon = [x, 12, x + 40, 12, x + 40, 60, x, 60]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=label + 1, iscrowd=0,
                     bbox=[x, 12, 40, 48], area=1920, segmentation=[polygon])
            )  # fmt: skip
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
    return dict(images=images, annotations=annotations, categories=categories)


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """RGB [H, W, 3], uint8: smooth in every channel, so that codecs lose little of it."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (255 * rows // height, 255 * columns // width, 255 - 255 * rows // height)
    return np.stack(channels, axis=2).astype(np.uint8)


def write(
    directory: Path, content: Document | str, spoil_image: Callable[[Path], None] | None = None
) -> Path:
    """Writes `annotations.json` and `images/`, with the first image malformed."""
    images = directory / "images"
    images.mkdir(parents=True)
    for image in document()["images"]:
        Image.fromarray(scene()).save(images / image["file_name"])
    if spoil_image is not None:
        name = content["images"][0]["file_name"]
        (images / "1.png").unlink()
        spoil_image(images / name)
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "annotations.json").write_text(text, encoding="utf-8")
    return directory


def _first(**fields: Any) -> Callable[[Document], None]:
    """Changes fields of the first annotation; None removes one."""

    def spoil(content: Document) -> None:
        one = content["annotations"][0]
        one.update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del one[key]

    return spoil


def _without(part: str, key: str) -> Callable[[Document], None]:
    return lambda content: content[part][0].pop(key)


def _set(part: str, **fields: Any) -> Callable[[Document], None]:
    return lambda content: content[part][0].update(fields)


def _renumbered(part: str, link: str, new: Callable[[int], Any]) -> Callable[[Document], None]:
    """Other ids for all images or categories, and for the annotations that name them."""

    def spoil(content: Document) -> None:
        for entries, key in ((content[part], "id"), (content["annotations"], link)):
            for one in entries:
                one[key] = new(one[key])

    return spoil


def _run_lengths(height: int = HEIGHT, width: int = WIDTH, objects: int = 1) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[12:60, 10:50] = objects
    code = rle.encode(mask)
    return dict(size=code["size"], counts=code["counts"].decode())


SQUARE = [10, 12, 50, 12, 50, 60, 10, 60]
SIZE = [HEIGHT, WIDTH]


def _masks(segmentation: Any) -> Callable[[Document], None]:
    return _first(segmentation=segmentation)


def _more_categories(content: Document) -> None:
    content["categories"].append(dict(id=6, name="more"))
    content["annotations"][0]["category_id"] = 6


ANNOTATION_CASES = {
    "valid": Case(lambda content: None, ""),
    "no height": Case(_without("images", "height"), "fields", r"1\.png.*no 'height'"),
    "half a pixel": Case(_set("images", height=83.5), "fields", r"1\.png.*height 83\.5"),
    "number as image": Case(lambda c: c["images"].append(3), "fields", "index 3.*: 3"),
    "duplicate image id": Case(_set("images", id=2), "duplicate ids", "image id 2, 2 times"),
    "text as image id": Case(
        _renumbered("images", "image_id", lambda i: "one" if i == 1 else i), "", None, "text ids"
    ),
    "duplicate category name": Case(
        _set("categories", name="square"), "duplicate ids", "lack 'circle'"
    ),
    "category gaps": Case(_renumbered("categories", "category_id", lambda i: 10 * i), ""),
    "additional category": Case(_more_categories, "classes", "include 'more', with objects"),
    "no bbox": Case(_first(bbox=None), "fields", "annotation 1 of image 1: no 'bbox'"),
    "three numbers": Case(_first(bbox=[1, 2, 3]), "fields", r"bbox \[1, 2, 3\]"),
    "NaN in a box": Case(_first(bbox=[NAN, 2, 30, 40]), "fields", "annotation 1 of image 1: bbox"),
    "duplicate id": Case(_first(id=2), "duplicate ids", "annotation id 2, 2 times"),
    "text as id": Case(_first(id="first"), "", None, "text ids"),
    "id 0": Case(_first(id=0), "", None, "id 0"),
    "unknown category": Case(_first(category_id=99), "unknown ids"),
    "negative box": Case(_first(bbox=[50, 60, -40, -48]), "degenerate boxes"),
    "area of zero": Case(_first(area=0), "degenerate boxes"),
    "box outside": Case(_first(bbox=[500, 500, 40, 48]), "boxes outside"),
    "box beyond": Case(_first(bbox=[-30, -30, 400, 400]), "boxes beyond"),
    "crowd": Case(_first(iscrowd=1, segmentation=_run_lengths()), ""),
    "no segmentation": Case(_masks(None), "no masks", "annotation 1"),
    "flat list": Case(_masks(SQUARE), "invalid masks", "invalid polygons"),
    "text in polygons": Case(_masks([["a"] * 6]), "invalid masks", "invalid polygons"),
    "two points": Case(_masks([[10, 12, 50, 60]]), "short polygons", None, "invalid masks"),
    "two points first": Case(
        _masks([[10, 12, 50, 60], SQUARE]), "short polygons", None, "invalid masks"
    ),
    "NaN in a polygon": Case(_masks([[10, NAN, *SQUARE[2:]]]), "invalid masks", "annotation 1"),
    "distant polygon": Case(_masks([[10, 1e8, *SQUARE[2:]]]), "invalid masks", "100000000"),
    "polygon of one point": Case(_masks([[10, 12] * 4]), "empty masks"),
    "polygon on a line": Case(_masks([[10, 10, 20, 20, 40, 40]]), "empty masks"),
    "one of two outside": Case(_masks([[-9, -9, -4, -9, -4, -4], SQUARE]), ""),
    "only background": Case(_masks(dict(size=SIZE, counts=[HEIGHT * WIDTH])), "empty masks"),
    "run lengths": Case(_masks(_run_lengths()), ""),
    "run lengths of another size": Case(
        _masks(_run_lengths(80, 70)), "invalid masks", r"size \[80, 70\]"
    ),
    "truncated run lengths": Case(
        _masks(dict(size=SIZE, counts=[30, 40])), "invalid masks", "70 of 9408"
    ),
    "long run lengths": Case(
        _masks(dict(_run_lengths(90, 130), size=SIZE)), "invalid masks", "11700 of 9408"
    ),
    "garbage as run lengths": Case(
        _masks(dict(size=SIZE, counts="zz~~é")), "invalid masks", "not run lengths"
    ),
    "negative run lengths": Case(
        _masks(dict(size=SIZE, counts=[30, -4, 9382])), "invalid masks", "not run lengths"
    ),
    "no annotations": Case(lambda c: c["annotations"].clear(), "nothing to learn", "excludes all"),
}
