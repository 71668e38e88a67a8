"""Reader of YOLO labels: boxes, polygons, or both; Ultralytics' and Darknet's layouts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ropevit_mmdet.datasets.conversion.labels import (
    ImageIndex,
    Labels,
    annotation,
    image_files,
    image_size,
    read_lines,
    split_of,
)
from ropevit_mmdet.errors import UserError

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")


def read_yolo(src: Path, images: ImageIndex) -> Iterator[Labels]:
    """YOLO: text files with `class x y width height` or `class x y x y x y ...` in 0..1.

    Classes and splits come from `data.yaml`, else from a file of names and the directories. An
    image without a label file has no objects.
    """
    settings = _settings(src)
    images.classes = settings["names"]
    labels = sorted(src.rglob("*.txt"))
    by_stem: dict[str, list[Path]] = {}
    for path in labels:
        by_stem.setdefault(path.stem, []).append(path)
    used: set[Path] = set()
    for split, paths in _splits(src, settings, images).items():
        for image in paths:
            images.reading = image
            label = _label_file(image, by_stem)
            used |= {label} if label else set()
            yield Labels(split, image, _objects(label, image, settings) if label else [])
    directories = {label.parent for label in used}
    for path in [one for one in labels if one.parent in directories and one not in used]:
        is_list = path.name in _NAME_FILES or split_of(Path(path.stem), "")
        if not is_list and not images.of_stem(path.stem):  # else of a split that is not listed
            images.missing.append(str(path))


def _settings(src: Path) -> dict[str, Any]:
    """The content of `data.yaml` with a list of `names`, or that of a file of names."""
    for path in [*sorted(src.glob("*.yaml")), *sorted(src.glob("*.yml"))]:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (names := content.get("names")):
            if isinstance(names, dict):
                names = [names[index] for index in range(len(names))]
            return content | {"names": list(map(str, names))}
    files = [path for name in _NAME_FILES for path in sorted(src.rglob(name))]
    if not files:
        raise UserError(
            f"{src} has no class names: add data.yaml with `names: [...]`, or classes.txt with a "
            "name per line"
        )
    return {"names": list(read_lines(files[0]))}


def _splits(src: Path, settings: dict[str, Any], images: ImageIndex) -> dict[str, list[Path]]:
    """The images of each split."""
    splits: dict[str, list[Path]] = {}
    for split in ("train", "val", "test"):
        values = settings.get(split) or []
        for value in values if isinstance(values, list) else [values]:
            path = _resolve(value, src, settings)
            if path and path.is_file():
                found = [_resolve(line, src, settings) for line in read_lines(path)]
            else:
                found = [*image_files(path)] if path else []
            if not any(found) and split == "test":  # Roboflow names it where it has none
                images.skipped[f"split 'test' without images ({value})"] += 1
            elif not any(found):
                raise UserError(f"{split}: {value} of {src} has no images: correct its data.yaml")
            splits.setdefault(split, []).extend(filter(None, found))
    if not splits:
        for path in images.files:
            splits.setdefault(split_of(path.relative_to(images.root).parent), []).append(path)
    return {split: list(dict.fromkeys(paths)) for split, paths in splits.items()}


def _resolve(value: str, src: Path, settings: dict[str, Any]) -> Path | None:
    """A path of `data.yaml`, also if it begins with directories of another machine."""
    parts = [part for part in Path(value).parts if part not in ("..", "/")]
    paths = [src / str(settings.get("path") or "") / value, src / value]
    last = len(parts) - (not value.endswith(".txt"))  # a directory alone could be another split's
    paths += [src.joinpath(*parts[start:]) for start in range(max(1, last))]
    return next((path for path in paths if path.exists()), None)


def _label_file(image: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    candidates = by_stem.get(image.stem, [])
    for path in (Path(*parts), image.with_suffix(".txt")):
        if path in candidates:
            return path
    same = [path for path in candidates if split_of(path.parent) == split_of(image.parent)]
    return same[0] if len(same) == 1 and "images" not in image.parts else None


def _objects(label: Path, image: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    objects = []
    height, width = image_size(image)
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
