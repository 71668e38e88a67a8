"""Shows the features of a RoPE ViT: principal components, attention and norms of its tokens.

CHECKPOINT IMAGES: a birder checkpoint (file, URL or birder://NAME); CONFIG CHECKPOINT IMAGES: the
backbone of a trained detector.
"""

import argparse
import json

from ropevit_cli._arguments import add_cfg_options, positive_int

HELP = "show principal components, attention and norms of a backbone's tokens"
CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "a birder checkpoint, or the config and the checkpoint of a detector"
    add("checkpoint", metavar="[CONFIG] CHECKPOINT", help=help)
    add("images", metavar="IMAGE", nargs="+", help="images, directories of them, or patterns")
    add("--out", default="features.png", metavar="FILE.png", help="the figure")
    add("--blocks", type=int, nargs="+", default=[-1], help="from 0; -1 is the last (default)")
    help = "the patch whose attention is shown, from 0 0 at the top left (default: the center)"
    add("--patch", type=int, nargs=2, metavar=("ROW", "COL"), help=help)
    add("--per-head", action="store_true", help="also write FILE_heads.png: attention per head")
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
    from pathlib import Path

    from tqdm import tqdm

    from ropevit_mmdet import visualization
    from ropevit_mmdet._images import find_images, read_images
    from ropevit_mmdet.apis import from_checkpoint, from_detector
    from ropevit_mmdet.compat import packaged_config
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.visualization.feature_maps import MAX_ROWS
    from ropevit_mmdet.visualization.features import center

    visualization.check_png(args.out)
    config, checkpoint, names = None, args.checkpoint, args.images
    packaged = None if Path(checkpoint).exists() else packaged_config(checkpoint)
    if packaged or checkpoint.endswith(CONFIG_SUFFIXES):
        config, (checkpoint, *names) = checkpoint, names
    paths = find_images(names, videos=False)
    if not 0 < len(paths) * len(args.blocks) <= MAX_ROWS:
        raise UserError(f"images x blocks: give 1 to {MAX_ROWS} in all")
    if config:
        config = load_config(config, args.cfg_options)
        source = from_detector(config, checkpoint, device=args.device)
    else:
        source = from_checkpoint(checkpoint, args.arch, size=args.size, device=args.device)
    backbone, features = source.backbone, []
    for image in tqdm(read_images(paths), total=len(paths), unit="image", disable=None):
        inputs, pixels = source.prepare(image.pixels)
        blocks = visualization.block_features(
            backbone, inputs, blocks=args.blocks, patch=args.patch
        )
        patch = tuple(args.patch or center(blocks[0].patches.shape[:2]))
        rows = image.path.name, pixels, patch, backbone.patch_size, blocks
        features.append(visualization.ImageFeatures(*rows))
    visualization.plot_features(features, args.out, num_registers=backbone.arch.num_reg_tokens)
    print(f"figure: {args.out}")
    if args.per_head:
        heads = Path(args.out).with_stem(f"{Path(args.out).stem}_heads")
        visualization.plot_heads(features, heads)
        print(f"heads:  {heads}")
