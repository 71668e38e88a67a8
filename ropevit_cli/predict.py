"""Detect objects in images and videos: overlays to look at and predictions.json to work with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from tqdm import tqdm

from ropevit_mmdet._images import check_readable, find_images
from ropevit_mmdet._output import check_output_directory
from ropevit_mmdet.apis.ground_truth import GroundTruth
from ropevit_mmdet.apis.predict import OVERLAY_DIRECTORY, RESULT_FILE, Predictor, predict_files
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        check_output_directory(args.out_dir)
        config = load_config(args.config, args.cfg_options)
        images = find_images(args.images)
        for path in tqdm(images, desc="checking", unit="image", disable=None, leave=False):
            check_readable(path)  # a bad one is found now, not after an hour of predicting
        predictor = Predictor(config, args.checkpoint, args.device)
        truth = read_truth(args.ann_file, predictor.names, images) if args.ann_file else None
        found = predict_files(
            predictor,
            images,
            args.out_dir,
            score_thr=args.score_thr,
            top_k=args.top_k,
            classes=args.classes,
            every=args.every,
            batch_size=args.batch_size,
            truth=truth,
            progress=lambda items, total: tqdm(
                items, total=total, desc="predicting", unit="image", disable=None
            ),
        )
    lowest = max(args.score_thr, predictor.lowest_score)
    print(f"{found} objects in {len(images)} images, scores of {lowest} and up")
    if lowest > args.score_thr:
        print(f"the config's score_thr leaves out those below {lowest}; --cfg-options changes it")
    print(f"overlays: {Path(args.out_dir) / OVERLAY_DIRECTORY}")
    print(f"results:  {Path(args.out_dir) / RESULT_FILE}")


def read_truth(ann_file: str, names: Sequence[str], images: Sequence[Path]) -> GroundTruth:
    truth = GroundTruth(ann_file, names)
    known = truth.count_known(images)
    if known < len(images):
        print(f"{ann_file} has {known} of the {len(images)} images")
    return truth


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument(
        "images",
        nargs="+",
        help="images, videos, directories of them, or patterns: 'shots/**/*.jpg'",
    )
    parser.add_argument(
        "--out-dir", default="outputs", help="directory to write (default: outputs)"
    )
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="leave out lower scores (default: 0.3)"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="keep the K best objects of an image"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="keep these classes only")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of videos, each N-th frame (default: 1)"
    )
    parser.add_argument(
        "--ann-file",
        metavar="COCO.json",
        help="draw the ground truth beside the predictions, where this file has the image",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: 1)")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    for name in ("batch_size", "top_k", "every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be 1 or more")
    return args


if __name__ == "__main__":
    main()
