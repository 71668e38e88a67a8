"""Shows the output of the data pipeline: images after augmentation with boxes and masks."""

import argparse

from ropevit_cli._arguments import add_cfg_options, add_config

HELP = "show the output of the data pipeline with boxes and masks"
SHEET = "contact_sheet.png"
MAX_ON_SHEET = 48  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config(parser)
    help = f"directory for the images and {SHEET} of the first {MAX_ON_SHEET}"
    add("--output-dir", metavar="DIRECTORY", help=help)
    add("--not-show", action="store_true", help="do not open a window")
    help = "seconds per image in the window (default: 2)"
    add("--show-interval", type=float, default=2, help=help)
    add("--split", choices=["train", "val", "test"], default="train")
    help = "images, spread over the data; 0: all (default: 16)"
    add("--num", type=int, default=16, help=help)
    add("--batch", action="store_true", help="render batches: padding and batch augmentations")
    add("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    import os
    from contextlib import nullcontext

    from mmengine.visualization import Visualizer
    from PIL import Image
    from tqdm import tqdm

    from ropevit_mmdet._output import check_output_directory, output_directory
    from ropevit_mmdet.apis.browse import PipelineOutput, spread_indices
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.visualization import contact_sheet

    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (args.output_dir if args.not_show else has_screen):
        raise UserError("no screen or none wanted: use --not-show --output-dir")
    if args.output_dir:
        check_output_directory(args.output_dir)
    data = PipelineOutput(load_config(args.config, args.cfg_options), args.split, batch=args.batch)
    indices = spread_indices(len(data), args.num or None)
    images = data.render(indices, seed=args.seed)
    window = None if args.not_show else Visualizer()
    overlays: list = []
    with output_directory(args.output_dir) if args.output_dir else nullcontext() as directory:
        for image in tqdm(images, total=len(indices), unit="image", disable=None):
            if window:
                window.show(image.overlay, image.file_name, wait_time=args.show_interval)
            if directory:
                Image.fromarray(image.overlay).save(directory / image.file_name)
                overlays = [*overlays, image.overlay][:MAX_ON_SHEET]
        if directory:
            sheet = contact_sheet(overlays, cell=480 if len(overlays) <= 16 else 360)
            Image.fromarray(sheet).save(directory / SHEET)
    print(f"{len(indices)} of the {len(data)} images of the {args.split} split")
    if args.output_dir:
        print(f"{len(overlays)} on one sheet: {os.path.join(args.output_dir, SHEET)}")
