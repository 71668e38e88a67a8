"""Detect objects in pictures: writes overlays to look at and predictions.json to work with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, ahead of all that need them
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; install the project first: pip install -e .")
except ImportError as error:  # of the checks of the installed packages, with the cure
    sys.exit(f"error: {error}")

from mmengine.config import DictAction
from tqdm import tqdm

from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.predict import (
    OVERLAY_FOLDER,
    RESULT_FILE,
    Predictor,
    find_pictures,
    predict_files,
    read_picture,
)
from ropevit_mmdet.run_config import load_config


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        config = load_config(args.config, args.cfg_options)
        pictures = find_pictures(args.pictures)
        for path in tqdm(pictures, desc="checking", unit="picture", disable=None, leave=False):
            read_picture(path)  # a bad one is found now, not after an hour of predicting
        predictor = Predictor(config, args.checkpoint, args.device)
        found = predict_files(
            predictor,
            pictures,
            args.out_dir,
            score_thr=args.score_thr,
            batch_size=args.batch_size,
            progress=lambda paths: tqdm(paths, desc="predicting", unit="picture", disable=None),
        )
    print(f"{found} objects in {len(pictures)} pictures, scores of {args.score_thr} and up")
    print(f"overlays: {Path(args.out_dir) / OVERLAY_FOLDER}")
    print(f"results:  {Path(args.out_dir) / RESULT_FILE}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--out-dir", default="outputs", help="folder to write (default: outputs)")
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="leave out lower scores (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at a time (default: 1)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size} must be 1 or more")
    return args


if __name__ == "__main__":
    main()
