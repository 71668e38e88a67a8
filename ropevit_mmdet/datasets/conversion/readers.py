"""Readers of label formats: a function of the directory and its images for each."""

import base64
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from ropevit_mmdet._images import SUFFIXES, open_image
from ropevit_mmdet.datasets.conversion.labels import (
    ImageIndex,
    Labels,
    annotation,
    find_files,
    image_size,
    number,
    read_lines,
    split_of,
)
from ropevit_mmdet.errors import UserError

Reader = Callable[[Path, ImageIndex], Iterable[Labels]]
_VOC_LISTS = ("ImageSets", "Main")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")


def read_yolo(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """YOLO: text files with `class x y width height` or `class x y x y x y ...` in 0..1.

    Classes and splits come from `data.yaml`, else from a file of names and, without a `*.data`, the
    directories. An image without a label file has no objects.
    """
    settings = _yolo_settings(src)
    images.classes = settings["names"]
    labels = find_files(src, ".txt")
    by_stem: dict[str, list[Path]] = {}
    for path in labels:
        by_stem.setdefault(path.stem, []).append(path)
    used: set[Path] = set()
    for split, paths in _yolo_splits(src, settings, images).items():
        for image in paths:
            images.reading, size = image, image_size(image)
            label = _yolo_file(image, src, by_stem)
            used |= {label} if label else set()
            yield Labels(split, image, _yolo_objects(label, size, settings) if label else [], size)
    directories = {label.parent for label in used}
    for path in [one for one in labels if one.parent in directories and one not in used]:
        is_list = path.name in _NAME_FILES or split_of(Path(path.stem), "")
        if not is_list and not images.of_stem(path.stem):  # else of a split that is not listed
            images.missing.append(str(path))


def _yolo_settings(src: Path) -> dict[str, Any]:
    """The content of `data.yaml` with a list of `names`, or that of Darknet's files."""
    for path in [*sorted(src.glob("*.yaml")), *sorted(src.glob("*.yml"))]:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (names := content.get("names")):
            names = [names[index] for index in range(len(names))]  # a list, or by index
            return content | {"names": list(map(str, names))}
    files = [path for name in _NAME_FILES for path in sorted(src.rglob(name))]
    if not files:
        raise UserError(
            f"{src} has no class names: add data.yaml with `names: [...]`, or classes.txt with a "
            "name per line"
        )
    return {"names": list(read_lines(files[0]))} | _darknet_splits(src)


def _darknet_splits(src: Path) -> dict[str, str]:
    """The lists of images that a file `*.data` names, if there are such images."""
    lines = [line.partition("=") for path in find_files(src, ".data") for line in read_lines(path)]
    values = {key.strip(): value.strip() for key, _, value in lines}
    splits = {}
    for split, key in (("train", "train"), ("val", "valid")):
        path = _yolo_path(values[key], src, {}) if key in values else None
        if path and path.is_file() and any(_yolo_path(one, src, {}) for one in read_lines(path)):
            splits[split] = values[key]
    return splits


def _yolo_splits(
    src: Path, settings: dict[str, Any], images: ImageIndex
) -> dict[str, dict[Path, None]]:
    """The images of each split, in order."""
    splits: dict[str, dict[Path, None]] = {}
    for split in ("train", "val", "test"):
        values = settings.get(split) or []
        for value in values if isinstance(values, list) else [values]:
            path = _yolo_path(value, src, settings)
            if path and path.is_file():
                listed = [_yolo_path(one, src, settings) for one in read_lines(path)]
                paths = dict.fromkeys(filter(None, listed))
                images.skipped[f"images of {path} that do not exist"] += listed.count(None)
            else:
                paths = dict.fromkeys(find_files(path, *SUFFIXES) if path else ())
            if not paths and split == "test":  # Roboflow names it where it has none
                images.skipped[f"split 'test' without images ({value})"] += 1
            elif not paths:
                raise UserError(f"{split}: {value} of {src} has no images: correct its data.yaml")
            splits.setdefault(split, {}).update(paths)
    for path in () if splits else images.files:
        splits.setdefault(split_of(path.relative_to(images.root).parent), {})[path] = None
    return splits


def _yolo_path(value: str, src: Path, settings: dict[str, Any]) -> Path | None:
    """A path of `data.yaml`, also if it begins with directories of another machine."""
    value = value.replace("\\", "/")
    parts = [part for part in Path(value).parts if part not in ("..", "/")]
    paths = [src / str(settings.get("path") or "") / value, src / value]
    last = len(parts) - (not value.endswith(".txt"))  # a directory alone could be another split's
    paths += [src.joinpath(*parts[start:]) for start in range(max(1, last))]
    return next((Path(os.path.normpath(path)) for path in paths if path.exists()), None)


def _yolo_file(image: Path, src: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    """The label file of an image: in `labels` for `images`, next to it, or of its name."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    candidates = by_stem.get(image.stem, [])
    for path in (Path(*parts), image.with_suffix(".txt")):
        if path in candidates:
            return path
    if image.is_relative_to(src) and "images" in image.relative_to(src).parts:
        return None
    same = [path for path in candidates if split_of(path.parent) == split_of(image.parent)]
    return same[0] if len(same) == 1 else None


def _yolo_objects(
    label: Path, size: tuple[int, int], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    objects = []
    height, width = size
    for line in read_lines(label):
        try:
            index, *values = map(float, line.split())
            name = dict(enumerate(settings["names"]))[int(index)]
        except (ValueError, LookupError):
            values = []
        values = values[:4] if settings.get("kpt_shape") else values
        scaled = [value * (height if i % 2 else width) for i, value in enumerate(values)]
        if len(scaled) == 4:
            x, y, w, h = scaled
            objects.append(annotation(name, (x - w / 2, y - h / 2, w, h)))
        elif len(scaled) >= 6 and len(scaled) % 2 == 0:
            objects.append(annotation(name, polygons=[scaled]))
        else:
            raise UserError(
                f"{label}: {line[:60]!r} is not `class x y width height` or a polygon, of one of "
                f"{len(settings['names'])} classes"
            )
    return objects


def read_voc(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """Pascal VOC: XML files, splits by `ImageSets/Main/*.txt`, else by directory.

    Corners are taken as they are; difficult objects are crowds, which no evaluation counts.
    """
    lists = sorted(path for path in find_files(src, ".txt") if path.parts[-3:-1] == _VOC_LISTS)
    for root in dict.fromkeys(path.parents[2] for path in lists) or [src]:
        files = find_files(root, ".xml")
        by_name: dict[Path, list[Path]] = {}  # files by each end of their paths, without suffix
        for path in files:
            parts = path.relative_to(root).with_suffix("").parts
            for start in range(len(parts)):
                by_name.setdefault(Path(*parts[start:]), []).append(path)
        named = {path.stem: path for path in lists if path.parents[2] == root}
        names = [name for name in ("train", "trainval", "val", "test") if name in named]
        for name in [one for one in names if one != "trainval" or "train" not in named]:
            for line in read_lines(named[name]):
                stem = Path(line) if Path(line) in by_name else Path(line.split()[0])
                found = by_name.get(stem) or by_name.get(stem.with_suffix(""), [])
                if len(found) == 1:
                    yield from _voc_file(found[0], split_of(Path(name)), images)
                else:
                    number_found = f"{len(found) or 'no'} XML files"
                    images.missing.append(f"{stem} in {named[name]}, which has {number_found}")
        for path in [] if names else files:
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
            grouped = group is not None and (shape.get("shape_type") or "polygon") == "polygon"
            groups.setdefault((group, shape["label"]) if grouped else index, []).append(shape)
        size = content.get("imageHeight"), content.get("imageWidth")
        objects = []
        for shapes in groups.values():
            flags = [shape | (shape.get("flags") or {}) for shape in shapes]
            crowd = any(one.get(k) for one in flags for k in ("crowd", "iscrowd", "difficult"))
            if fields := _labelme_object(shapes, size):
                objects.append(annotation(shapes[0]["label"], **fields, crowd=crowd))
            else:
                images.skipped[f"{shapes[0].get('shape_type') or 'polygon'} shapes"] += 1
        if image := images.find(path, content.get("imagePath") or ""):
            split = split_of(path.relative_to(src).parent)
            yield Labels(split, image, objects, size if all(size) else None)  # type: ignore[arg-type]


def _labelme_object(shapes: list[dict[str, Any]], size: tuple[Any, Any]) -> dict[str, Any]:
    """Arguments of `annotation` for a shape or the polygons of a group; {} if it has no area."""
    kind = shapes[0].get("shape_type") or "polygon"
    points = np.array(shapes[0]["points"], float)  # [N, 2]
    if kind == "polygon":
        parts = [np.array(one["points"], float).ravel().tolist() for one in shapes]
        return {"polygons": parts} if (parts := [one for one in parts if len(one) >= 6]) else {}
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
    return {}


def read_createml(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """CreateML: a JSON list for each directory; coordinates are the center of a box."""
    for path, content in _json_files(src, images, list):
        for one in content:
            name = one.get("image") or one.get("imagefilename")
            objects = []
            for label in one.get("annotations") or one.get("annotation") or ():
                keys = ("x", "y", "width", "height")
                x, y, width, height = (number(label["coordinates"][key]) for key in keys)
                box = (x - width / 2, y - height / 2, width, height)
                objects.append(annotation(label["label"], box))
            if image := images.find(path.with_name(Path(name).name), name):
                yield Labels(split_of(image.relative_to(images.root).parent), image, objects)


def _json_files(src: Path, images: ImageIndex, content_type: type) -> Iterator[tuple[Path, Any]]:
    for path in find_files(src, ".json"):
        images.reading = path
        content = json.loads(path.read_bytes())  # UTF-8 or 16, as its start shows
        if isinstance(content, content_type):
            yield path, content


READERS: dict[str, Reader] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "createml": read_createml,
}
