"""Writes the Penn-Fudan pedestrians as a dataset in COCO's format, with masks.

    python -m benchmarks.photos.pennfudan PennFudanPed.zip data/photos/pennfudan

The archive is on https://www.cis.upenn.edu/~jshi/ped_html/ (Wang et al., ACCV 2007).
"""

import argparse
import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ropevit_mmdet._output import output_directory

NUM_VAL = 50


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", help="PennFudanPed.zip")
    parser.add_argument("out_dir", help="directory to write")
    args = parser.parse_args(argv)
    with zipfile.ZipFile(args.archive) as archive, output_directory(args.out_dir) as directory:
        names = sorted(name for name in archive.namelist() if name.endswith("_mask.png"))
        random.Random(0).shuffle(names)
        (directory / "annotations").mkdir()
        for split, part in (("val", names[:NUM_VAL]), ("train", names[NUM_VAL:])):
            _write(archive, sorted(part), directory, split)


def _write(archive: zipfile.ZipFile, names: list[str], directory: Path, split: str) -> None:
    images, annotations = [], []
    (directory / split).mkdir()
    for image_id, name in enumerate(names, start=1):
        file = Path(name).name.replace("_mask", "")
        photo = archive.read(name.replace("PedMasks", "PNGImages").replace("_mask", ""))
        (directory / split / file).write_bytes(photo)
        objects = np.array(Image.open(io.BytesIO(archive.read(name))))  # 0, or a person's number
        height, width = objects.shape
        images.append(dict(id=image_id, file_name=file, width=width, height=height))
        for number in np.unique(objects[objects > 0]):
            code = rle.encode(np.asfortranarray(objects == number, np.uint8))
            links = dict(id=len(annotations) + 1, image_id=image_id, category_id=1, iscrowd=0)
            shape = dict(bbox=rle.toBbox(code).tolist(), area=int(rle.area(code)))
            text = dict(size=code["size"], counts=code["counts"].decode())
            annotations.append(links | shape | dict(segmentation=text))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="person")])
    path = directory / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
