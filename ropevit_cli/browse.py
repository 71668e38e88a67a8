"""See what the pipeline feeds the model: images after augmentation, boxes and masks over them."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmengine.visualization import Visualizer
from PIL import Image
from tqdm import tqdm

from ropevit_mmdet._output import check_output_directory, output_directory
from ropevit_mmdet.apis.browse import FedDataset, FedImage, file_name, spread_indices
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.overlays import contact_sheet

SHEET = "contact_sheet.png"
ON_SHEET = 48  # images; more would be too small to see


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        if args.output_dir:
            check_output_directory(args.output_dir)
        config = load_config(args.config, args.cfg_options)
        data = FedDataset(config, args.split, batch=args.batch)
        indices = spread_indices(len(data), args.num or None)
        images = tqdm(
            data.images(indices, seed=args.seed),
            total=len(indices),
            desc="browsing",
            unit="image",
            disable=None,
        )
        with output_directory(args.output_dir) if args.output_dir else nullcontext() as directory:
            browse(images, directory, None if args.not_show else args.show_interval)
    print(f"{len(indices)} of the {len(data)} images of the {args.split} split")
    if args.output_dir:
        which = "all of them" if len(indices) <= ON_SHEET else f"the first {ON_SHEET}"
        print(f"{which} on one sheet: {Path(args.output_dir) / SHEET}")


def browse(images: Iterator[FedImage], directory: Path | None, seconds: float | None) -> None:
    """Write overlays and their sheet into a directory, show them for some seconds each, or both."""
    drawn = []
    window = Visualizer() if seconds is not None else None
    for image in images:
        if window is not None:
            title = f"{image.index} {Path(image.path).name}"
            window.show(image.overlay, win_name=title, wait_time=seconds)
        if directory is not None:
            Image.fromarray(image.overlay).save(directory / file_name(image))
            drawn.append(image.overlay)
    if directory is not None:
        # Few images are as large as many small ones, so that labels can be read.
        cell = 480 if len(drawn) <= 16 else 360
        Image.fromarray(contact_sheet(drawn[:ON_SHEET], cell=cell)).save(directory / SHEET)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--output-dir",
        metavar="DIRECTORY",
        help=f"write images there, and {ON_SHEET} at most on one {SHEET}",
    )
    parser.add_argument("--not-show", action="store_true", help="do not show them on the screen")
    parser.add_argument(
        "--show-interval", type=float, default=2, help="seconds that each is shown (default: 2)"
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument(
        "--num", type=int, default=16, help="images, spread over the data; 0: all (default: 16)"
    )
    parser.add_argument(
        "--batch",
        action="store_true",
        help="as they reach the network: in batches, padded, with batch augmentations",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.num < 0:
        parser.error(f"--num {args.num} must be 0 or more")
    if args.not_show and not args.output_dir:
        parser.error("--not-show without --output-dir leaves nothing to see")
    if not args.not_show and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        parser.error("no screen here (DISPLAY is not set): use --not-show --output-dir DIRECTORY")
    return args


if __name__ == "__main__":
    main()
