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
Spoil = Callable[[Document], None]


class Case(NamedTuple):
    """One defect: how to cause it, the check that reports it, and how a run ends."""

    spoil: Spoil
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


def settings(directory: Path, **options: Any) -> dict[str, Any]:
    """A CheckedCocoDataset of what `write` has written, without a pipeline."""
    given = dict(type="CheckedCocoDataset", data_root=f"{directory}/", pipeline=[])
    given |= dict(ann_file="annotations.json", data_prefix=dict(img="images/"))
    return given | dict(metainfo=dict(classes=CLASSES)) | options


def _set(part: str = "annotations", number: int | None = 1, **fields: Any) -> Spoil:
    """Changes fields of the first entries, or all; None removes one, functions get its value."""

    def spoil(content: Document) -> None:
        for one in content[part][:number]:
            for key, new in fields.items():
                one[key] = new(one[key]) if callable(new) else new
                if new is None:
                    del one[key]

    return spoil


def _all(part: str = "annotations", **fields: Any) -> Spoil:
    return _set(part, None, **fields)


def _crowds(content: Document) -> None:
    for one in content["annotations"][1:]:
        one.update(iscrowd=1, segmentation=run_lengths())


def _heading(**fields: Any) -> Spoil:
    return lambda content: content["categories"].insert(0, dict(id=0, **fields))


def _renumbered(part: str, link: str, new: Callable[[int], Any]) -> Spoil:
    """Other ids for all images or categories, and for the annotations that name them."""

    def spoil(content: Document) -> None:
        _all(part, id=new)(content)
        _all(**{link: new})(content)

    return spoil


def run_lengths(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[12:60, 10:50] = 1
    code = rle.encode(mask)
    return dict(size=code["size"], counts=code["counts"].decode())


SQUARE = [10, 12, 50, 12, 50, 60, 10, 60]
SIZE = [HEIGHT, WIDTH]


def _masks(segmentation: Any) -> Spoil:
    return _set(segmentation=segmentation)


def _more_categories(content: Document) -> None:
    content["categories"].append(dict(id=6, name="more"))
    content["annotations"][0]["category_id"] = 6


def _repeated(content: Document) -> None:
    content["annotations"].append({**content["annotations"][-1], "id": 7})


def _box_without_size(content: Document) -> None:
    """As one of the blood cells of https://github.com/Shenggan/BCCD_Dataset."""
    last = content["annotations"][-1]
    content["annotations"].append({**last, "id": last["id"] + 1, "bbox": [5, 5, 0, 0], "area": 0})


ANNOTATION_CASES = {
    "valid": Case(lambda content: None, ""),
    "no height": Case(_set("images", height=None), "fields", r"1\.png.*no 'height'"),
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
    "additional category": Case(_more_categories, "other classes"),
    "no bbox": Case(_set(bbox=None), "fields", "annotation 1 of image 1: no 'bbox'"),
    "three numbers": Case(_set(bbox=[1, 2, 3]), "fields", r"bbox \[1, 2, 3\]"),
    "NaN in a box": Case(_set(bbox=[NAN, 2, 30, 40]), "fields", "annotation 1 of image 1: bbox"),
    "duplicate id": Case(_set(id=2), "duplicate ids", "annotation id 2, 2 times"),
    "text as id": Case(_set(id="first"), "", None, "text ids"),
    "id 0": Case(_set(id=0), "", None, "id 0"),
    "unknown category": Case(_set(category_id=99), "unknown ids"),
    "negative box": Case(_set(bbox=[50, 60, -40, -48]), "degenerate boxes"),
    "box without size": Case(_box_without_size, "degenerate boxes"),
    "area of zero": Case(_set(area=0), "degenerate boxes"),
    "box outside": Case(_set(bbox=[500, 500, 40, 48]), "boxes outside"),
    "box beyond": Case(_set(bbox=[-30, -30, 400, 400]), "boxes beyond"),
    "crowd": Case(_set(iscrowd=1, segmentation=run_lengths()), ""),
    "no segmentation": Case(_masks(None), "no masks", "annotation 1"),
    "text in polygons": Case(_masks([["a"] * 6]), "invalid masks", "invalid polygons"),
    "two points": Case(_masks([[10, 12, 50, 60]]), "short polygons", None, "invalid masks"),
    "two points first": Case(
        _masks([[10, 12, 50, 60], SQUARE]), "short polygons", None, "invalid masks"
    ),
    "NaN in a polygon": Case(_masks([[10, NAN, *SQUARE[2:]]]), "invalid masks", "annotation 1"),
    "distant polygon": Case(_masks([[10, 1e8, *SQUARE[2:]]]), "invalid masks", "100000000"),
    "polygon on a line": Case(_masks([[10, 10, 20, 20, 40, 40]]), ""),
    "only background": Case(_masks(dict(size=SIZE, counts=[HEIGHT * WIDTH])), ""),
    "one of two outside": Case(_masks([[-9, -9, -4, -9, -4, -4], SQUARE]), ""),
    "run lengths": Case(_masks(run_lengths()), ""),
    "run lengths of another size": Case(
        _masks(run_lengths(80, 70)), "invalid masks", r"size \[80, 70\]"
    ),
    "truncated run lengths": Case(
        _masks(dict(size=SIZE, counts=[30, 40])), "invalid masks", "70 of 9408"
    ),
    "long run lengths": Case(
        _masks(dict(run_lengths(90, 130), size=SIZE)), "invalid masks", "11700 of 9408"
    ),
    "garbage as run lengths": Case(
        _masks(dict(size=SIZE, counts="zz~~é")), "invalid masks", "not run lengths"
    ),
    "heading": Case(_heading(name="shapes", supercategory="none"), ""),
    "heading of the name of a class": Case(
        _heading(name="ring", supercategory="none"), "duplicate ids", "have another order"
    ),
    "two entries of a file": Case(_set("images", file_name="2.png"), "same file"),
    "repeated object": Case(_repeated, "repeated objects"),
    "backslash": Case(_set("images", file_name=r".\1.png"), "file names"),
    "mostly crowds": Case(_crowds, "mostly crowds"),
    "one other image id": Case(_set(image_id="1"), "other ids"),
    "no annotations": Case(lambda c: c["annotations"].clear(), "nothing usable", "excludes all"),
}
# All annotations of a file, and why none is trained.
UNUSABLE = {
    "crowds": (_all(iscrowd=1, segmentation=run_lengths()), r"are crowds \(iscrowd=1\)"),
    "ignored": (_all(ignore=1), "are marked `ignore`"),
    "normalized": (_all(bbox=[0.1, 0.2, 0.4, 0.5], area=0.2), "have a box within 0..1"),
    "normalized corners": (_all(bbox=[0.1, 0.2, 1, 1], area=1), "have a box within 0..1"),
    "text for a number": (_all(image_id=str), "have image_ids of another type than the ids"),
    "number for a text": (_all("images", id=str), "have image_ids of another type than the ids"),
    "text categories": (_all(category_id=str), "have category_ids of another type than the ids"),
    "other images": (_all(image_id=99), "have unknown image_ids"),
    "outside": (_all(bbox=[500, 500, 40, 48]), "are outside of the image"),
    "thin": (_all(bbox=[5, 5, 40, 0.5]), "are smaller than a pixel"),
    "area 0": (_all(area=0), "are smaller than a pixel"),
    "short polygons": (_all(segmentation=[[1, 2, 3, 4]]), "have polygons of less than three"),
}
