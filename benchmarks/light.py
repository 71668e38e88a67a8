"""Measure what the operations of a detector buy: AP next to its cost on the synthetic shapes.

    python -m benchmarks.light --plot light.png

Mask R-CNN of `configs/shapes_transfer.py` with the backbone of `benchmarks.recipes`, and what is
published for COCO: windows of the pretraining grid, two RPN convolutions, square batches. One
choice at a time is changed, then all of `configs/ropevit_maskrcnn_light.py`. Started again, the
command resumes.
"""

import argparse
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.recipes import SMALL, Recipes, log
from ropevit_mmdet.apis.compare.cost import measure_costs
from ropevit_mmdet.apis.compare.report import markdown, plot_cost, rows_of
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization._figure_file import save_figure

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
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="box AP over the latency")
    args = parser.parse_args(argv)
    with one_line_errors():
        recipes = Recipes(args.root.resolve(), args.seeds, args.jobs)
        recipes.start_from(args.weights)
        futures = started(recipes, args)
        results = {name: [result_of(one) for one in several] for name, several in futures.items()}
        costs = costs_at_test(recipes, results)
        rows = rows_of(results, dict(zip(results, costs, strict=True)))
        if args.plot:
            save_figure(plot_cost(rows), args.plot)
    print(markdown(rows))


def started(recipes: Recipes, args: argparse.Namespace) -> dict[str, list[Future]]:
    """The runs of each row; those that only test wait for the training that they start from."""
    iterations = args.iterations or recipes.config.train_cfg.max_iters
    length = {f"train_cfg.{key}": iterations for key in ("max_iters", "val_interval")}
    common = recipes.pretrained() | PUBLISHED | length

    def runs(name: str) -> list[Future]:
        settings, trains = VARIANTS[name]
        futures = []
        for seed in recipes.seeds:
            options = common | settings
            if not trains:
                first = recipes.directory(run_name("published"), seed)
                options |= {"load_from": str(first / f"iter_{iterations}.pth")}
            futures.append(recipes.run(None, run_name(name), SMALL, options, seed, trains=trains))
        return futures

    names = dict.fromkeys(["published", *args.only])
    trained = {name: runs(name) for name in names if VARIANTS[name][1]}
    for future in trained["published"]:
        future.result()
    return {name: trained.get(name) or runs(name) for name in names}


def run_name(variant: str) -> str:
    return f"light {variant}".replace("light light", "light all")


def result_of(run: Future) -> dict[str, Any]:
    result = run.result()
    aps = {key: result["metrics"][key] for key in ("coco/bbox_mAP", "coco/segm_mAP")}
    return result | {"metrics": aps}


def costs_at_test(recipes: Recipes, names: Iterable[str]) -> list[dict[str, float]]:
    """Parameters, operations of the whole detector, and images per second, interleaved."""
    configs = [load_config(SMALL, PUBLISHED | VARIANTS[name][0]) for name in names]
    directories = [recipes.directory(run_name(name), 0) for name in names]
    counts = [sum(gflop(config).values()) for config in configs]
    measured = measure_costs(directories, log)
    return [
        {
            "parameters, M": one["parameters, M"],
            "GFLOP": count,
            "% of published": 100 * count / counts[0],
            "images/s": one["images/s"],
        }
        for one, count in zip(measured, counts, strict=True)
    ]


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
