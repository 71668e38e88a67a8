"""Measure what the operations of a detector buy: AP next to GFLOP on the synthetic shapes.

    python -m benchmarks.light

Mask R-CNN of `configs/shapes_transfer.py` with the backbone of `benchmarks.recipes`, and what is
published for COCO: windows of the pretraining grid, two RPN convolutions, square batches. One
choice at a time is changed, then all of `configs/ropevit_maskrcnn_light.py`. Started again, the
command resumes.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.recipes import SMALL, Recipes, ap_cell
from ropevit_mmdet.apis.compare.experiment import mean_and_spread
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import one_line_errors

SIDE, DETECTIONS = 224, 5  # pixels, and masks per image, of the shapes
PROPOSALS = "model.test_cfg.rpn.max_per_img"  # 100 are published, as 1,000 of COCO
PUBLISHED: dict[str, Any] = {
    "model.backbone.window_size": 4,
    "model.rpn_head.num_convs": 2,
    "model.data_preprocessor.batch_augments": [
        dict(type="BatchFixedSizePad", size=(SIDE, SIDE), pad_mask=True)
    ],
}
LEVELS = {"featmap_strides": [14], "finest_scale": 112}
COARSE: dict[str, Any] = {
    "model.neck.scale_factors": (1, 0.5),
    "model.neck.num_outs": 2,
    "model.rpn_head.anchor_generator.strides": [14, 28],
    "model.rpn_head.anchor_generator.scales": [1.1, 2.2, 4.4],
} | {
    f"model.roi_head.{part}_roi_extractor.{key}": value
    for part in ("bbox", "mask")
    for key, value in LEVELS.items()
}
SIMILAR: dict[str, Any] = {
    "model.data_preprocessor.batch_augments": None,
    "train_dataloader.batch_sampler": dict(type="AspectBatchSampler"),
}
RPN = {"model.rpn_head.num_convs": 1}
BOX_HEAD = {"model.roi_head.bbox_head.num_shared_convs": 1}
GLOBAL = {"model.backbone.global_attn_indices": (2, 5)}  # the last of each half
LIGHT = COARSE | RPN | BOX_HEAD | {PROPOSALS: 30}
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {  # settings, and whether they change training
    "published": ({}, True),
    **{f"{count} proposals": ({PROPOSALS: count}, False) for count in (50, 30, 10)},
    "without the finest level": (COARSE, True),
    "one RPN convolution": (RPN, True),
    "half the box head's convolutions": (BOX_HEAD, True),
    "half the global blocks": (GLOBAL, True),
    "batches of similar aspects": (SIMILAR, True),
    "light": (LIGHT, True),
    "light, half the global blocks": (LIGHT | GLOBAL, True),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("work_dirs/recipes"), help="directory")
    parser.add_argument("--weights", type=Path, help="birder's checkpoint (default: pretrain one)")
    parser.add_argument("--seeds", type=int, default=2, help="runs per row (default: 2)")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs (default: 1)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="ROW", default=[*VARIANTS])
    parser.add_argument("--iterations", type=int, help="of a trial (default: the config's)")
    args = parser.parse_args(argv)
    with one_line_errors():
        recipes = Recipes(args.root.resolve(), args.seeds, args.jobs)
        recipes.start_from(args.weights)
        rows = [row(name, futures) for name, futures in started(recipes, args).items()]
    (recipes.root / "light.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def started(recipes: Recipes, args: argparse.Namespace) -> dict[str, list]:
    """The runs of each row; those that only test wait for the training that they start from."""
    iterations = args.iterations or recipes.config.train_cfg.max_iters
    length = {f"train_cfg.{key}": iterations for key in ("max_iters", "val_interval")}
    common = recipes.pretrained() | PUBLISHED | length

    def runs(name: str) -> list:
        settings, trains = VARIANTS[name]
        directory = f"light {name}".replace("light light", "light all")
        options = [common | settings for _ in recipes.seeds]
        if not trains:
            first = recipes.root / "runs" / "light-published-seed{}" / f"iter_{iterations}.pth"
            options = [o | {"load_from": str(first).format(i)} for i, o in enumerate(options)]
        return [
            recipes.run(None, directory, SMALL, one, seed, trains=trains)
            for seed, one in zip(recipes.seeds, options, strict=True)
        ]

    names = dict.fromkeys(["published", *args.only])
    trained = {name: runs(name) for name in names if VARIANTS[name][1]}
    for future in trained["published"]:
        future.result()
    return {name: trained.get(name) or runs(name) for name in names}


def row(name: str, futures: list) -> dict[str, Any]:
    results = [future.result() for future in futures]
    metrics = {
        key: [100 * result["metrics"][f"coco/{key}_mAP"] for result in results]
        for key in ("bbox", "segm")
    }
    config = load_config(SMALL, PUBLISHED | VARIANTS[name][0])
    seconds = [result["train_seconds"] for result in results if result["train_seconds"]]
    return dict(name=name, gflop=sum(gflop(config).values()), seconds=seconds, **metrics)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | GFLOP | of published | box AP | mask AP | training, s |", "|---" * 6 + "|"]
    for one in rows:
        cells = [one["name"], f"{one['gflop']:.2f}", f"{one['gflop'] / rows[0]['gflop']:.0%}"]
        cells += [ap_cell(one[key]) for key in ("bbox", "segm")]
        cells.append(f"{mean_and_spread(one['seconds'])[0]:.0f}" if one["seconds"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gflop(
    config: Config, size: tuple[int, int] = (SIDE, SIDE), detections: int = DETECTIONS
) -> dict[str, float]:
    """Counts a prediction of Mask R-CNN by part, without computing it.

    Args:
        config: of Mask R-CNN; its boxes come from as many proposals as its `test_cfg` allows.
        size: pixels (height, width) of an image.
        detections: masks per image.
    """
    model: Any = build_detector(config, random=False).eval().to("meta")
    head, proposals = model.roi_head, config.model.test_cfg.rpn.max_per_img
    x: Any = torch.zeros(1, 3, *size, device="meta")
    counts = {}

    def count(part: str, function: Any, value: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = function(value)
        counts[part] = counter.get_total_flops() / 1e9
        return output

    def rois(number: int, extractor: Any) -> torch.Tensor:
        size = extractor.roi_layers[0].output_size
        return torch.zeros(number, extractor.out_channels, *size, device="meta")

    # The pyramid asks for the autocast of the device, and `meta` has none.
    with torch.no_grad(), mock.patch("torch.is_autocast_enabled", return_value=False):
        x = count("neck", model.neck, count("backbone", model.backbone, x))
        count("RPN", model.rpn_head, x)
        count("box head", head.bbox_head, rois(proposals, head.bbox_roi_extractor))
        count("mask head", head.mask_head, rois(detections, head.mask_roi_extractor))
    return counts


if __name__ == "__main__":
    main()
