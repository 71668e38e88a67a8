"""Measure what runs on the CPU around a model: data loading, RoIAlign, masks, validation.

    python -m benchmarks.around --gpu-images 73

One thread unless `--threads` says otherwise. Workers that feed a GPU are the images per second that
it trains on, `--gpu-images`, over those that one worker loads, rounded up. Validation evaluates
5,000 images with 100 detections each by pycocotools and faster-coco-eval, and compares figures.
"""

import argparse
import contextlib
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ropevit_cli._arguments import positive_int
from ropevit_mmdet.apis.benchmark.models import corners
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.evaluation.fast_coco_metric import _Evaluation

WIDTH, HEIGHT, OBJECTS, POINTS = 640, 480, 7, 40  # COCO's usual size, objects and polygon points
CLASSES = 80


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, metavar="NAME", default=[*SECTIONS])
    add("--config", default="ropevit_maskrcnn", help="whose training pipeline loads images")
    add("--size", type=positive_int, default=896, help="pixels of RoIAlign's image")
    add("--images", type=positive_int, default=5000, help="of the validation")
    add("--detections", type=positive_int, default=100, help="per image of the validation")
    add("--loaded", type=positive_int, default=64, help="images through the pipeline")
    add("--threads", type=positive_int, nargs="+", default=[1, 2], help="of RoIAlign")
    add("--gpu-images", type=float, default=73, help="images/s that the GPU trains on")
    add("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures = {}
    for name in args.only:
        figures[name] = SECTIONS[name](args)
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures[name].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def roi_align(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of 1,000 RoIs on the finest level, by threads."""
    from mmcv.ops import roi_align

    cells = args.size // 7
    maps = torch.randn(1, 256, cells, cells)
    starts = corners(1000)[:, :2]  # RoIs of a tenth of the image's side: those of this level
    rois = torch.cat([torch.zeros(1000, 1), args.size * torch.cat([starts, starts + 0.1], 1)], 1)
    figures = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        seconds = median_seconds(lambda: roi_align(maps, rois, 7, 1 / 7, 0, "avg", True))
        figures[f"ms on {threads} threads"] = 1000 * seconds
    torch.set_num_threads(1)
    return figures


def loading(args: argparse.Namespace) -> dict[str, float]:
    """Images per second of one worker in the training pipeline, and workers that feed a GPU."""
    config = load_config(args.config)
    init_default_scope("mmdet")
    with TemporaryDirectory() as directory:
        dataset = write_photos(Path(directory), config)
        start = time.perf_counter()
        for index in range(args.loaded):
            dataset[index % len(dataset)]
        rate = args.loaded / (time.perf_counter() - start)
    return {
        "images/s per worker": rate,
        f"workers for {args.gpu_images:g} images/s": math.ceil(args.gpu_images / rate),
    }


def write_photos(directory: Path, config: Any, count: int = 16) -> Any:
    """A dataset of JPEGs with noise of several scales, and polygons, with the config's pipeline."""
    from mmdet.registry import DATASETS

    random, images = np.random.RandomState(0), []
    for index in range(count):
        small = Image.fromarray(random.randint(0, 256, (60, 80, 3), np.uint8))
        pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.randint(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(directory / f"{index}.jpg", quality=92)
        images.append(dict(id=index, file_name=f"{index}.jpg", width=WIDTH, height=HEIGHT))
    objects = [
        dict(one, id=number + 1, image_id=index, segmentation=[one.pop("polygon")], iscrowd=0)
        for number, (index, one) in enumerate(
            (index, one) for index in range(count) for one in polygons(random, OBJECTS)
        )
    ]
    names = config.train_dataloader.dataset.get("metainfo", {}).get("classes") or ("object",)
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(names)]
    for one in objects:
        one["category_id"] = 1 + one["category_id"] % len(names)
    document = dict(images=images, annotations=objects, categories=categories)
    (directory / "a.json").write_text(json.dumps(document))
    settings = config.train_dataloader.dataset
    settings.update(data_root=str(directory), ann_file="a.json", data_prefix=dict(img=""))
    settings.metainfo = dict(classes=tuple(names))
    return DATASETS.build(settings)


def polygons(random: np.random.RandomState, count: int) -> list[dict[str, Any]]:
    """Ellipses of `POINTS` points with box, area and class."""
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    found = []
    for _ in range(count):
        radii = 0.5 * np.array([WIDTH, HEIGHT]) * 0.05 * 10 ** random.rand(2)
        centre = radii + random.rand(2) * ([WIDTH, HEIGHT] - 2 * radii)
        points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1)
        found.append(
            dict(
                bbox=[*(centre - radii).tolist(), *(2 * radii).tolist()],
                area=float(np.pi * radii.prod()),
                category_id=int(random.randint(CLASSES)) + 1,
                polygon=points.flatten().tolist(),
            )
        )
    return found


def masks(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds to paste 100 masks into an image, and to encode them as run lengths."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
    from mmdet.structures.mask import encode_mask_results
    from mmengine.structures import InstanceData

    head: Any = FCNMaskHead(num_convs=1, num_classes=CLASSES)
    boxes = corners(100) * torch.tensor([WIDTH, HEIGHT] * 2)
    logits = torch.nn.functional.interpolate(torch.randn(100, CLASSES, 4, 4), size=28)
    instances = InstanceData(bboxes=boxes, labels=torch.zeros(100, dtype=torch.long))
    meta = dict(ori_shape=(HEIGHT, WIDTH), img_shape=(HEIGHT, WIDTH), scale_factor=(1.0, 1.0))
    settings = load_config(args.config).model.test_cfg.rcnn

    def paste() -> Any:
        (result,) = head.predict_by_feat((logits,), [instances.clone()], [meta], settings)
        return result.masks

    pasted = paste().numpy()
    return {
        "ms to paste": 1000 * median_seconds(paste),
        "ms to encode": 1000 * median_seconds(lambda: encode_mask_results(pasted)),
    }


def validation(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of both evaluations for boxes and masks, and their largest difference."""
    truth, detections = coco(args.images, args.detections)
    figures = {}
    for iou_type, name in (("bbox", "boxes"), ("segm", "masks")):
        stats, seconds = [], []
        for evaluation in (COCOeval, _Evaluation):
            with contextlib.redirect_stdout(io.StringIO()):
                one = evaluation(truth, detections, iou_type)
                start = time.process_time()
                one.evaluate()
                one.accumulate()
                seconds.append(time.process_time() - start)
                one.summarize()
            stats.append(np.array(one.stats[:12], float))
        difference = np.abs(stats[0] - stats[1]).max()
        figures |= {f"{name}: pycocotools, s": seconds[0], f"{name}: faster, s": seconds[1]}
        figures |= {f"{name}: ratio": seconds[0] / seconds[1], f"{name}: difference": difference}
        figures[f"{name}: AP"] = stats[0][0]
    return figures


def coco(images: int, detections: int) -> tuple[COCO, COCO]:
    """Ground truth, and detections: each object nine times or more, shifted, and of any class."""
    random, document = np.random.RandomState(0), []
    names = dict(categories=[dict(id=i + 1, name=str(i)) for i in range(CLASSES)])
    names |= dict(images=[dict(id=i, width=WIDTH, height=HEIGHT) for i in range(images)])
    results = []
    for index in range(images):
        objects = polygons(random, OBJECTS)
        document += [dict(one, image_id=index, iscrowd=0) for one in objects]
        for number in range(detections):
            one = objects[number % OBJECTS]
            shift = random.randn(2) * 0.3 * np.array(one["bbox"][2:]) * random.rand()
            moved = np.array(one["polygon"]) + np.tile(shift, POINTS)
            category = one["category_id"] if random.rand() < 0.7 else random.randint(CLASSES) + 1
            box = [*(np.array(one["bbox"][:2]) + shift).tolist(), *one["bbox"][2:]]
            result = dict(bbox=box, area=one["area"], polygon=moved.tolist(), score=random.rand())
            results.append(result | dict(image_id=index, category_id=int(category), iscrowd=0))
    return indexed(names, document), indexed(names, results)


def indexed(names: dict[str, Any], objects: list[dict[str, Any]]) -> COCO:
    """An index of objects, whose polygons become run lengths."""
    for number, one in enumerate(objects):
        (one["segmentation"],) = rle.frPyObjects([one.pop("polygon")], HEIGHT, WIDTH)
        one["id"] = number + 1
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = names | dict(annotations=objects)
        found.createIndex()
    return found


SECTIONS = {"RoIAlign": roi_align, "loading": loading, "masks": masks, "validation": validation}


if __name__ == "__main__":
    main()
