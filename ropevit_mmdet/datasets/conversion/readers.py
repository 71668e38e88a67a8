"""Readers of label formats: a function of the directory and its images for each."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ropevit_mmdet._images import open_image
from ropevit_mmdet.datasets.conversion.labels import (
    ImageIndex,
    Labels,
    annotation,
    number,
    read_lines,
    split_of,
)
from ropevit_mmdet.datasets.conversion.yolo import read_yolo

Reader = Callable[[Path, ImageIndex], Iterable[Labels]]


def read_voc(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """Pascal VOC: XML files, splits by `ImageSets/Main/*.txt`, else by directory.

    Corners are taken as they are; difficult objects are crowds, which no evaluation counts.
    """
    files = sorted(src.rglob("*.xml"))
    by_stem = {path.stem: path for path in files}
    lists = {path.stem: path for path in sorted(src.glob("ImageSets/Main/*.txt"))}
    named = [name for name in ("train", "trainval", "val", "test") if name in lists]
    for name in [one for one in named if one != "trainval" or "train" not in lists]:
        for line in read_lines(lists[name]):
            stem = line.split()[0]
            if path := by_stem.get(stem) or by_stem.get(Path(stem).stem):
                yield from _voc_file(path, split_of(Path(name)), images)
            else:
                images.missing.append(f"{stem} in {lists[name]}, which has no XML file")
    for path in [] if named else files:
        yield from _voc_file(path, split_of(path.relative_to(src).parent), images)


def _voc_file(path: Path, split: str, images: ImageIndex) -> Iterator[Labels]:
    images.reading = path
    root = ElementTree.parse(path).getroot()
    mask_file = path.parents[1] / "SegmentationObject" / f"{path.stem}.png"
    numbers = None
    if mask_file.is_file():  # the palette's index of a pixel is the number of its object
        with open_image(mask_file) as opened:
            numbers = np.asarray(opened)
    objects = []
    for index, one in enumerate(root.iter("object"), start=1):
        keys = ("xmin", "ymin", "xmax", "ymax")
        x, y, right, bottom = (number(one.findtext(f"bndbox/{key}")) for key in keys)
        polygon = [number(point.text) for point in one.find("polygon") or ()]
        mask = numbers == index if numbers is not None and (numbers == index).any() else None
        objects.append(
            annotation(
                one.findtext("name") or "",
                (x, y, right - x, bottom - y),
                polygons=[polygon] if len(polygon) >= 6 else (),
                mask=mask,
                crowd=(one.findtext("difficult") or "").strip() == "1",
            )
        )
    if image := images.find(path, root.findtext("filename") or ""):
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
        yield Labels(split, image, objects, (height, width) if height and width else None)


def read_labelme(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """LabelMe: a JSON file for each image; polygons of one `group_id` are one object."""
    for path, content in _json_files(src, images, dict):
        if not isinstance(content.get("shapes"), list):
            continue
        groups: dict[Any, list[dict[str, Any]]] = {}
        for index, shape in enumerate(content["shapes"]):
            group = shape.get("group_id")
            key = ("shape", index) if group is None else ("group", group, shape["label"])
            groups.setdefault(key, []).append(shape)
        size = content.get("imageHeight"), content.get("imageWidth")
        objects = []
        for shapes in groups.values():
            fields = _labelme_object(shapes, size)
            crowd = any(map(_is_crowd, shapes))
            if fields:
                objects.append(annotation(shapes[0]["label"], **fields, crowd=crowd))
            else:
                images.skipped[f"{shapes[0].get('shape_type') or 'polygon'} shapes"] += 1
        if image := images.find(path, content.get("imagePath") or ""):
            split = split_of(path.relative_to(src).parent)
            yield Labels(split, image, objects, size if all(size) else None)  # type: ignore[arg-type]


def _labelme_object(shapes: list[dict[str, Any]], size: tuple[Any, Any]) -> dict[str, Any]:
    """Arguments of `annotation` for the shapes of a group; {} if it has no area."""
    kind = shapes[0].get("shape_type") or "polygon"
    points = np.array(shapes[0]["points"], float)  # [N, 2]
    if kind == "polygon":
        parts = [np.array(one["points"], float) for one in shapes if len(one["points"]) > 2]
        return {"polygons": [part.ravel().tolist() for part in parts]} if parts else {}
    if kind == "rectangle":
        low, high = points.min(axis=0), points.max(axis=0)
        return {"box": (*low, *(high - low))}
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shapes[0]["mask"])), formats=["PNG"]) as opened:
            part = np.asarray(opened) > 0
        left, top = points[0].astype(int)
        mask = np.zeros(size, bool)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return {"mask": mask}
    if kind == "circle":
        center, edge = points
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        ring = np.stack((np.cos(angles), np.sin(angles)), axis=1) * np.linalg.norm(edge - center)
        return {"polygons": [(center + ring).ravel().tolist()]}
    return {}


def _is_crowd(shape: dict[str, Any]) -> bool:
    flags = shape | (shape.get("flags") or {})
    return any(flags.get(key) for key in ("crowd", "iscrowd", "difficult"))


def read_createml(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """CreateML: a JSON list for each directory; coordinates are the center of a box."""
    for path, content in _json_files(src, images, list):
        for one in content:
            name = one.get("image") or one.get("imagefilename")
            objects = []
            for label in one.get("annotations") or ():
                keys = ("x", "y", "width", "height")
                x, y, width, height = (number(label["coordinates"][key]) for key in keys)
                box = (x - width / 2, y - height / 2, width, height)
                objects.append(annotation(label["label"], box))
            if image := images.find(path.with_name(Path(name).name), name):
                yield Labels(split_of(image.relative_to(images.root).parent), image, objects)


def _json_files(src: Path, images: ImageIndex, content_type: type) -> Iterator[tuple[Path, Any]]:
    for path in sorted(src.rglob("*.json")):
        images.reading = path
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, content_type):
            yield path, content


READERS: dict[str, Reader] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "createml": read_createml,
}
