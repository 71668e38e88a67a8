"""Photos with annotations in COCO's format, and the parts of a config that follow from them."""

import json
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from ropevit_mmdet.errors import UserError

Steps = list[dict[str, Any]]


class Photos(NamedTuple):
    """A dataset as `ropevit convert` writes it: `annotations/instances_NAME.json` and `NAME/`."""

    root: Path
    classes: tuple[str, ...]
    has_masks: bool
    has_test: bool
    size: int  # pixels: the longer side of an image in the network
    center: float  # pixels there: the middle of the objects' sizes, on a logarithmic scale
    ratio: float  # height / width of the objects, the median

    @property
    def square(self) -> int:
        """Pixels: the side of a square that holds an image, of complete cells of stride 28."""
        return ceil(self.size / 28) * 28

    @property
    def metrics(self) -> list[str]:
        return ["bbox", "segm"] if self.has_masks else ["bbox"]


def read_photos(root: Path, size: int) -> Photos:
    """Reads the training annotations; anchors follow from their boxes."""
    path = root / "annotations" / "instances_train.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: docs/first_hour.md says where the photos are from")
    document = json.loads(path.read_text(encoding="utf-8"))
    sides = {image["id"]: max(image["width"], image["height"]) for image in document["images"]}
    objects = [one for one in document["annotations"] if min(one["bbox"][2:]) >= 1]
    width, height = np.array([one["bbox"][2:] for one in objects]).T
    scale = np.array([size / sides[one["image_id"]] for one in objects])
    smallest, largest = np.percentile(scale * np.sqrt(width * height), (2, 98))
    return Photos(
        root,
        tuple(category["name"] for category in document["categories"]),
        has_masks=all(one.get("segmentation") for one in objects),
        has_test=path.with_name("instances_test.json").is_file(),
        size=size,
        center=float(np.sqrt(smallest * largest).round(1)),
        ratio=float(np.median(height / width).round(1)),
    )


def use_photos(config: Config, photos: Photos, augmentation: Steps) -> None:
    """Sets the data of a config: pipelines, classes, evaluation on validation images at the end."""
    load = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=photos.has_masks),
    ]
    train = [*load, *augmentation, dict(type="PackDetInputs")]
    resize = dict(type="Resize", scale=(photos.size, photos.size), keep_ratio=True)
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    test = [load[0], resize, load[1], dict(type="PackDetInputs", meta_keys=keys)]
    common = dict(data_root=str(photos.root), metainfo=dict(classes=photos.classes))
    for split, pipeline in (("train", train), ("val", test), ("test", test)):
        config.pop(f"{split}_pipeline", None)
        config[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
        config[f"{split}_dataloader"].dataset.update(common, pipeline=pipeline)
    tested_on(config, photos, "val")
    config.val_cfg = config.val_dataloader = config.val_evaluator = None


def tested_on(config: Config, photos: Photos, split: str) -> None:
    """Sets the images of the test."""
    ann_file = f"annotations/instances_{split}.json"
    config.test_dataloader.dataset.update(ann_file=ann_file, data_prefix=dict(img=f"{split}/"))
    evaluator = dict(ann_file=str(photos.root / ann_file), metric=photos.metrics, classwise=True)
    config.test_evaluator.update(evaluator)


def jitter(
    size: int, smallest: float, largest: float, mirrored: tuple[str, ...] = ("horizontal",)
) -> Steps:
    """Scales an image at random and crops or pads it, as `_base_/datasets/coco_lsj.py` does."""
    flips = [0.5] if len(mirrored) == 1 else [1 / (len(mirrored) + 1)] * len(mirrored)
    square = (size, size)
    return [
        dict(type="RandomResize", scale=square, ratio_range=(smallest, largest), keep_ratio=True),
        dict(type="RandomCrop", crop_size=square, recompute_bbox=True, allow_negative_crop=True),
        dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
        dict(type="RandomFlip", prob=flips, direction=[*mirrored]),
    ]
