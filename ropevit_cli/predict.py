"""Detects objects in images and videos; writes overlays and predictions.json.

A file that cannot be used is named and skipped; the exit status is then 1.
"""

import argparse
import sys

from ropevit_cli._arguments import add_cfg_options, add_detector, detector_arguments, positive_int

HELP = "detect objects in images and videos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_detector(parser, "IMAGE...")
    add("--out-dir", default="outputs", help="directory to write (default: outputs)")
    add("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    add("--score-thr", type=float, default=0.3, help="drop lower scores (default: 0.3)")
    add("--top-k", type=positive_int, metavar="K", help="keep the K best objects of an image")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    help = "use every N-th frame of a video (default: 1)"
    add("--every", type=positive_int, default=1, metavar="N", help=help)
    help = "images per forward pass (default: 1)"
    add("--batch-size", type=positive_int, default=1, help=help)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ropevit_mmdet._images import find_images
    from ropevit_mmdet._output import check_output_directory
    from ropevit_mmdet.apis import Detector, predict_files
    from ropevit_mmdet.apis.predict import OVERLAY_DIRECTORY, RESULT_FILE

    check_output_directory(args.out_dir)
    config, checkpoint, names = detector_arguments(args, 1, more=True)
    images = find_images(names)
    options = dict(config=config, cfg_options=args.cfg_options, device=args.device)
    detector = Detector(checkpoint, **options)
    keys = ("score_thr", "top_k", "classes", "every", "batch_size")
    settings = {key: getattr(args, key) for key in keys}
    number, skipped = predict_files(detector, images, args.out_dir, **settings)
    min_score = max(args.score_thr, detector.min_score)
    count = len(images) - len(skipped)
    files = f"{count} file{'s' * (count != 1)}"
    print(f"{number} objects in {files}, scores of {min_score} and up")
    if min_score > args.score_thr:
        print(f"the config's score_thr drops scores below {min_score}; --cfg-options changes it")
    print(f"overlays: {Path(args.out_dir) / OVERLAY_DIRECTORY}")
    print(f"results:  {Path(args.out_dir) / RESULT_FILE}")
    for message in skipped:
        sys.stderr.write(f"skipped: {message}\n")
    return 1 if skipped else 0
