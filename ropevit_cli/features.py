"""Shows the features of a RoPE ViT: principal components, attention and norms of its tokens.

CHECKPOINT is birder's (file, URL or birder://NAME) or a detector's, with CONFIG instead of the
config in it.
"""

import argparse
import json

from ropevit_cli._arguments import add_cfg_options, add_detector, detector_arguments, positive_int

HELP = "show principal components, attention and norms of a backbone's tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_detector(parser, "IMAGE...")
    add("--out", default="features.png", metavar="FILE.png", help="the figure")
    add("--blocks", type=int, nargs="+", default=[-1], help="from 0; -1 is the last (default)")
    help = "the patch whose attention is shown, from 0 0 at the top left (default: the center)"
    add("--patch", type=int, nargs=2, metavar=("ROW", "COL"), help=help)
    help = "longer side of an image for a birder checkpoint (default: as in its training)"
    add("--size", type=positive_int, metavar="PIXELS", help=help)
    help = "architecture of a birder checkpoint, if it is not identified: name or settings as JSON"
    add("--arch", type=arch_argument, help=help)
    add("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    add_cfg_options(parser)


def arch_argument(text: str) -> dict | str:
    """Parses a name or a JSON object."""
    return json.loads(text) if text.startswith("{") else text


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ropevit_mmdet import visualization
    from ropevit_mmdet._images import find_images, read_images
    from ropevit_mmdet.apis.features import image_features, load_features
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.visualization.feature_maps import MAX_ROWS

    visualization.check_png(args.out)
    config, checkpoint, names = detector_arguments(args, 1, more=True)
    paths = find_images(names, videos=False)
    if len(paths) * len(args.blocks) > MAX_ROWS:
        text = f"{len(paths)} images x {len(args.blocks)} blocks are too many for a figure"
        raise UserError(f"{text}: give {MAX_ROWS} in all, or fewer")
    settings = {name: getattr(args, name) for name in ("cfg_options", "arch", "size", "device")}
    source = load_features(checkpoint, config, **settings)
    images = tqdm(read_images(paths), total=len(paths), unit="image", disable=None)
    features = image_features(source, images, blocks=args.blocks, patch=args.patch)
    num_registers = source.backbone.arch.num_reg_tokens
    figure = visualization.plot_features(features, num_registers=num_registers)
    visualization.save_figure(figure, args.out)
    print(f"figure: {args.out}")
