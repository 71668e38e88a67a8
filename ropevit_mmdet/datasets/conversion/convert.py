"""Writes labels of another format as a dataset in COCO's format."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ropevit_mmdet._output import output_directory
from ropevit_mmdet.compat.config import CONFIGS
from ropevit_mmdet.datasets.conversion.labels import ImageIndex, Labels, image_size
from ropevit_mmdet.datasets.conversion.readers import READERS
from ropevit_mmdet.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass
class Conversion:
    """What `convert` has written: class names, images and objects by split, notes."""

    directory: Path
    classes: tuple[str, ...]
    masks: int
    notes: list[str]
    images: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)

    def config(self, *, scratch: bool = False) -> str:
        """A config that trains on the dataset: `custom_coco.py` with its lines set.

        With `scratch` it is `custom_coco_scratch.py`: a tiny network, for boxes, on a CPU.
        """
        base = "maskrcnn" if self.masks == self.objects.total() else "retinanet"
        val = next(split for split in ("val", "test", "train") if self.images[split])
        lines: dict[str, Any] = {
            "data_root": f"{self.directory.as_posix()}/",
            "train_ann": f"annotations/instances_{'train' if self.images['train'] else val}.json",
            "val_ann": f"annotations/instances_{val}.json",
            "classes": self.classes,
            "_base_": f"ropevit_mmdet::{'shapes_retinanet' if scratch else f'ropevit_{base}'}.py",
        }
        name = "custom_coco_scratch.py" if scratch else "custom_coco.py"
        text = (CONFIGS / name).read_text(encoding="utf-8")
        for name, value in lines.items():
            (line,) = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
            text = text.replace(line, f"{name} = {value!r}")
        return text


def convert(
    label_format: str,
    src: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    classes: Sequence[str] = (),
) -> Conversion:
    """Writes `<out_dir>/annotations/instances_{split}.json` and `<out_dir>/{split}/`, or nothing.

    Images are hard links where the file system has them, else copies.

    Args:
        label_format: One of `READERS`.
        src: Directory of the labels.
        out_dir: Directory to write; it must be empty or absent.
        images: Directory of the images, by default `src`.
        classes: Class names in the order of their labels, by default that of YOLO's files, else
            sorted.

    Raises:
        UserError: For labels that cannot be read, without images or class names.
    """
    src, out_dir = Path(os.path.abspath(src)), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not an empty directory: choose another one")
    index = ImageIndex(Path(os.path.abspath(images or src)))
    labels = _read(label_format, src, index)
    objects = [one for image in labels for one in image.objects]
    names = Counter(one["name"] for one in objects)
    result = Conversion(
        out_dir,
        tuple(classes or index.classes or sorted(names)),
        sum("segmentation" in one for one in objects),
        list(_notes(labels, objects, index)),
    )
    if not names.keys() <= set(result.classes) or len(set(result.classes)) < len(result.classes):
        raise UserError(
            f"--classes {' '.join(result.classes)} must list each class once; the labels have "
            f"{', '.join(f'{name} ({names[name]})' for name in sorted(names))}"
        )
    with output_directory(out_dir) as partial:
        (partial / "annotations").mkdir()
        for split in SPLITS:
            _write_split(partial, split, [one for one in labels if one.split == split], result)
    return result


def _read(label_format: str, src: Path, index: ImageIndex) -> list[Labels]:
    """All labels, if they are complete and have objects."""
    issue = None if index.files else f"{index.root} has no images: name their directory by --images"
    labels: list[Labels] = []
    try:
        reader = READERS[label_format](src, index) if index.files else ()
        for one in tqdm(reader, "reading", unit="image", disable=None, leave=False):
            objects = [*{repr(fields): fields for fields in one.objects}.values()]
            index.skipped["objects that repeat another"] += len(one.objects) - len(objects)
            image = Path(os.path.abspath(one.image))
            labels.append(one._replace(image=image, objects=objects))
    except UserError:
        raise
    except Exception as error:  # of a parser, or of a reader for labels of another form
        issue = f"{index.reading} has no valid {label_format} labels: {error!r}"
    if index.missing and not issue:
        issue = (
            f"{len(index.missing)} label files have no image in {index.root}, such as "
            f"{index.missing[0]}: name its directory by --images, or remove the labels"
        )
    if issue or not any(one.objects for one in labels):
        raise UserError(issue or f"{src} has no {label_format} labels with objects")
    times = Counter((one.split, one.image) for one in labels)
    if twice := [image for (_, image), number in times.items() if number > 1]:
        raise UserError(f"{len(twice)} images have labels twice in a split, such as {twice[0]}")
    return labels


def _notes(labels: list[Labels], objects: list[dict], index: ImageIndex) -> Iterator[str]:
    """What a user should know about the result and cannot see in it."""
    boxes = sum("segmentation" not in one for one in objects)
    if 0 < boxes < len(objects):
        yield f"{boxes:,} of {len(objects):,} objects have a box only: the config trains no masks"
    if crowds := sum(one["iscrowd"] for one in objects):
        yield f"{crowds:,} difficult or ignored objects are crowds, not trained or evaluated"
    if unused := set(index.files) - {one.image for one in labels}:
        yield f"{len(unused):,} images have no labels, such as {min(unused)}: skipped"
    if shared := len(labels) - len({one.image for one in labels}):
        yield f"{shared:,} images are in more than one split"
    splits = {one.split for one in labels}
    if "train" not in splits or len(splits) == 1:
        there = ", ".join(sorted(splits))
        yield f"the config trains and evaluates on the same images: the only splits are {there}"
    skipped = +index.skipped  # what is more than 0
    yield from (f"{number:,} {what} are skipped" for what, number in skipped.items())


def _write_split(directory: Path, split: str, labels: list[Labels], result: Conversion) -> None:
    """Writes the annotation file and the images of a split, if it has any."""
    if not labels:
        return
    ids = {name: number for number, name in enumerate(result.classes, start=1)}
    root = Path(os.path.commonpath([one.image.parent for one in labels]))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, one in enumerate(labels, start=1):
        name = one.image.relative_to(root).as_posix()
        height, width = one.size or image_size(one.image)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for fields in one.objects:
            links = {"image_id": image_id, "category_id": ids[fields.pop("name")]}
            annotations.append({"id": len(annotations) + 1} | links | fields)
        _link(one.image, directory / split / name)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = directory / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    result.images[split], result.objects[split] = len(images), len(annotations)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
