"""Detects objects in images and videos; writes overlays and predictions.json."""

import argparse

from ropevit_cli._arguments import add_cfg_options, add_config, positive_int

HELP = "detect objects in images and videos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config(parser)
    add("checkpoint", help="checkpoint of a detector")
    add("images", nargs="+", help="images, videos, directories, or patterns: 'shots/**/*.jpg'")
    add("--out-dir", default="outputs", help="directory to write (default: outputs)")
    add("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    add("--score-thr", type=float, default=0.3, help="drop lower scores (default: 0.3)")
    add("--top-k", type=positive_int, metavar="K", help="keep the K best objects of an image")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    help = "use every N-th frame of a video (default: 1)"
    add("--every", type=positive_int, default=1, metavar="N", help=help)
    add("--ann-file", metavar="COCO.json", help="render this ground truth next to predictions")
    help = "images per forward pass (default: 1)"
    add("--batch-size", type=positive_int, default=1, help=help)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tqdm import tqdm

    from ropevit_mmdet._images import check_readable, find_images
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.apis import Detector, GroundTruth, predict_files
    from ropevit_mmdet.apis.predict import OVERLAY_DIRECTORY, RESULT_FILE
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError

    check_output_directory(args.out_dir)
    config = load_config(args.config, args.cfg_options)
    images = find_images(args.images)
    bar: dict = dict(unit="image", disable=None)
    for path in tqdm(images, desc="checking", leave=False, **bar):
        check_readable(path)  # before hours of prediction
    detector = Detector(config, args.checkpoint, args.device)
    truth = GroundTruth(args.ann_file, detector.names) if args.ann_file else None
    if truth and (known := truth.count_known(images)) < len(images):
        if not known:
            raise UserError(f"{args.ann_file} has none of the images")
        print(f"{args.ann_file} has {known} of the {len(images)} images")
    options = ("score_thr", "top_k", "classes", "every", "batch_size")
    number = predict_files(
        detector,
        images,
        args.out_dir,
        truth=truth,
        progress=lambda items, total: tqdm(items, total=total, desc="predicting", **bar),
        **{name: getattr(args, name) for name in options},
    )
    min_score = max(args.score_thr, detector.min_score)
    print(f"{number} objects in {len(images)} images, scores of {min_score} and up")
    if min_score > args.score_thr:
        print(f"the config's score_thr drops scores below {min_score}; --cfg-options changes it")
    print(f"overlays: {Path(args.out_dir) / OVERLAY_DIRECTORY}")
    print(f"results:  {Path(args.out_dir) / RESULT_FILE}")
