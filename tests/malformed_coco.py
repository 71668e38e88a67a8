"""Datasets in COCO's format with one thing wrong in the annotations; see also malformed_images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle

CLASSES = ("circle", "square", "triangle", "star", "ring")
HEIGHT, WIDTH = 84, 112  # of the sound images
NAN, INFINITY = float("nan"), float("inf")
Document = dict[str, Any]


class Case(NamedTuple):
    """One thing wrong: how it comes about, as what it is reported, how a run ends."""

    spoil: Callable[..., None]
    kind: str  # of finding, to a training
    stops: str | None = None  # what the error of a training says; None: it trains
    refused: str | None = None  # the kind of finding for which an evaluation alone is refused


def document(num_images: int = 3) -> Document:
    """A sound annotation file: two objects in each image, with polygons."""
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
    """Write `annotations.json` and `images/`, the first image spoilt; returns `directory`."""
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
    """Other fields for the first annotation; None takes one away."""

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
ANNOTATION_CASES = {
    "sound": Case(lambda content: None, ""),
    "no image id": Case(_without("images", "id"), "image fields", r"1\.png: no 'id'"),
    "no file name": Case(_without("images", "file_name"), "image fields", "image number 0"),
    "no height": Case(_without("images", "height"), "image fields", r"1\.png: no 'height'"),
    "negative width": Case(_set("images", width=-3), "image fields", r"1\.png: width -3"),
    "half a pixel": Case(_set("images", height=83.5), "image fields", r"1\.png: height 83\.5"),
    "name a number": Case(_set("images", file_name=7), "image fields", "file_name 7"),
    "an entry a number": Case(lambda c: c["images"].append(3), "image fields", "number 3: 3 is"),
    "a list as image id": Case(_set("images", id=[1]), "image fields", r"id \[1\]"),
    "image id twice": Case(_set("images", id=2), "image ids", r"2: 1\.png and 2\.png"),
    "file twice": Case(_set("images", file_name="2.png"), "file names"),
    "file twice, in two sizes": Case(
        _set("images", file_name="2.png", height=90), "file sizes", r"2\.png"
    ),
    "image id of 400 digits": Case(_set("images", id=10**400), "image fields", r"1\.png: id 10000"),
    "image ids partly text": Case(
        _renumbered("images", "image_id", lambda i: "one" if i == 1 else i), "", None, "mixed ids"
    ),
    "too many pixels": Case(
        _set("images", height=20000, width=20000), "too large", r"1\.png: 20000 x 20000"
    ),
    "category id twice": Case(_set("categories", id=2), "category ids", "2 2 times"),
    "category name twice": Case(_set("categories", name="square"), "category names", "several"),
    "no category name": Case(_without("categories", "name"), "category fields", "categor"),
    "category gaps": Case(
        _renumbered("categories", "category_id", lambda i: 10 * i), "category gaps"
    ),
    "category ids partly text": Case(
        _renumbered("categories", "category_id", lambda i: "one" if i == 1 else i),
        "",
        None,
        "mixed ids",
    ),
    "one category more": Case(
        lambda c: (c["categories"].append(dict(id=6, name="more")), _first(category_id=6)(c)),
        "classes",
        "have 'more', with objects, beside the config's classes",
    ),
    "no bbox": Case(_first(bbox=None), "annotation fields", "annotation 1 of image 1: no 'bbox'"),
    "no area": Case(_first(area=None), "annotation fields", "no 'area'"),
    "no image of it": Case(_first(image_id=None), "annotation fields", "no 'image_id'"),
    "three numbers": Case(_first(bbox=[1, 2, 3]), "annotation fields", r"bbox \[1, 2, 3\]"),
    "numbers as text": Case(_first(bbox=["1", "2", "3", "4"]), "annotation fields", "bbox"),
    "a huge integer": Case(_first(bbox=[1, 2, 10**400, 4]), "annotation fields", "bbox"),
    "crowd as text": Case(_first(iscrowd="0"), "annotation fields", "iscrowd '0'"),
    "a list as id": Case(_first(category_id=[1]), "annotation fields", r"category_id \[1\]"),
    "annotation id twice": Case(_first(id=2), "annotation ids", "share an id"),
    "id of 400 digits": Case(_first(id=10**400), "annotation fields", "id 10000"),
    "text as id": Case(_first(id="first"), "", None, "text ids"),
    "marked with ignore": Case(_first(ignore=1), "ignored"),
    "id of zero": Case(_first(id=0), "zero ids in training", None, "zero ids"),
    "id of zero point zero": Case(_first(id=-0.0), "zero ids in training", None, "zero ids"),
    "false as id": Case(_first(id=False), "zero ids in training", None, "zero ids"),
    "unknown image": Case(_first(image_id=99), "unknown images"),
    "unknown category": Case(_first(category_id=99), "unknown categories"),
    "NaN in a box": Case(_first(bbox=[NAN, 2, 30, 40]), "not finite", "annotation 1: bbox"),
    "infinite box": Case(_first(bbox=[1, 2, INFINITY, 40]), "not finite", "NaN or infinite"),
    "box of 1e30": Case(_first(bbox=[1, 2, 1e30, 40]), "not finite", "NaN or infinite"),
    "NaN as area": Case(_first(area=NAN), "not finite", "area nan"),
    "negative box": Case(_first(bbox=[50, 60, -40, -48]), "negative boxes"),
    "box of no width": Case(_first(bbox=[10, 12, 0, 48]), "empty boxes"),
    "area of zero": Case(_first(area=0), "empty boxes"),
    "box outside": Case(_first(bbox=[500, 500, 40, 48]), "boxes outside"),
    "box beyond": Case(_first(bbox=[-30, -30, 400, 400]), "boxes beyond"),
    "crowd": Case(_first(iscrowd=1, segmentation=_run_lengths()), "crowds"),
    "no segmentation": Case(_first(segmentation=None), "no masks", "annotation 1"),
    "empty segmentation": Case(_first(segmentation=[]), "no masks", "without a segmentation"),
    "flat list": Case(_first(segmentation=SQUARE), "bad masks", "neither lists"),
    "text in polygons": Case(_first(segmentation=[["a"] * 6]), "bad masks", "neither lists"),
    "two points": Case(
        _first(segmentation=[[10, 12, 50, 60]]), "short polygons", None, "two points first"
    ),
    "two points beside": Case(
        _first(segmentation=[[10, 12, 50, 60], SQUARE]), "short polygons", None, "two points first"
    ),
    "half a point": Case(_first(segmentation=[SQUARE[:7]]), "short polygons"),
    "NaN in a polygon": Case(
        _first(segmentation=[[10, NAN, *SQUARE[2:]]]), "wild polygons", "annotation 1"
    ),
    "far polygon": Case(_first(segmentation=[[10, 1e8, *SQUARE[2:]]]), "wild polygons", "outside"),
    "polygon of one point": Case(_first(segmentation=[[10, 12] * 4]), "empty masks"),
    "polygon on a line": Case(_first(segmentation=[[10, 10, 20, 20, 40, 40]]), "empty masks"),
    "polygon outside": Case(_first(segmentation=[[-50, -50, -40, -50, -40, -40]]), "empty masks"),
    "polygon outside beside": Case(_first(segmentation=[[-9, -9, -4, -9, -4, -4], SQUARE]), ""),
    "background in run lengths": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[HEIGHT * WIDTH])), "empty masks"
    ),
    "background in coded run lengths": Case(
        _first(segmentation=_run_lengths(objects=0)), "empty masks"
    ),
    "run lengths": Case(_first(segmentation=_run_lengths()), ""),
    "run lengths of another size": Case(
        _first(segmentation=_run_lengths(80, 70)), "run lengths", r"size \[80, 70\]"
    ),
    "run lengths turned": Case(
        _first(segmentation=_run_lengths(WIDTH, HEIGHT)), "run lengths", r"image has \[84, 112\]"
    ),
    "run lengths truncated": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[30, 40])), "run lengths", "70 of 94"
    ),
    "run lengths too long": Case(
        _first(segmentation=dict(_run_lengths(90, 130), size=[HEIGHT, WIDTH])),
        "run lengths",
        "11700 of 9408",
    ),  # fmt: skip
    "run lengths of garbage": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts="zz~~é")), "run lengths", "not run"
    ),
    "negative run lengths": Case(
        _first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[30, -4, 9382])),
        "run lengths",
        "not run",
    ),  # fmt: skip
    "no counts": Case(_first(segmentation=dict(size=[HEIGHT, WIDTH])), "bad masks", "neither"),
    "no annotations": Case(lambda c: c["annotations"].clear(), "nothing to learn", "is left by"),
}
