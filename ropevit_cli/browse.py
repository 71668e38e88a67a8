"""Writes the output of the data pipeline: images after augmentation with boxes and masks."""

import argparse

from ropevit_cli._arguments import add_cfg_options, add_config, natural_int

HELP = "write the output of the data pipeline with boxes and masks"
SHEET = "contact_sheet.png"
MAX_ON_SHEET = 48  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config(parser)
    help = f"for the images and {SHEET} of the first {MAX_ON_SHEET} (default: browsed)"
    add("--output-dir", metavar="DIRECTORY", default="browsed", help=help)
    add("--split", choices=["train", "val", "test"], default="train")
    help = "images, spread over the data; 0: all (default: 16)"
    add("--num", type=natural_int, default=16, help=help)
    add("--batch", action="store_true", help="render batches: padding and batch augmentations")
    add("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from PIL import Image
    from tqdm import tqdm

    from ropevit_mmdet._output import check_output_directory, output_directory
    from ropevit_mmdet.apis.browse import PipelineOutput, spread_indices
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.visualization import contact_sheet

    check_output_directory(args.output_dir)
    data = PipelineOutput(load_config(args.config, args.cfg_options), args.split, batch=args.batch)
    indices = spread_indices(len(data), args.num or None)
    images = data.render(indices, seed=args.seed)
    overlays: list = []
    with output_directory(args.output_dir) as directory:
        for name, overlay in tqdm(images, total=len(indices), unit="image", disable=None):
            Image.fromarray(overlay).save(directory / name)
            overlays = [*overlays, overlay][:MAX_ON_SHEET]
        sheet = contact_sheet(overlays, cell=480 if len(overlays) <= 16 else 360)
        Image.fromarray(sheet).save(directory / SHEET)
    print(f"{len(indices)} of the {len(data)} images of the {args.split} split")
    print(f"{len(overlays)} on one sheet: {args.output_dir}/{SHEET}")
