"""Look into a RoPE ViT: what its tokens tell apart, where a patch looks, which tokens are large.

show_features.py CHECKPOINT IMAGES           a birder checkpoint: a file, URL or birder://NAME
show_features.py CONFIG CHECKPOINT IMAGES    the backbone of a trained detector
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from tqdm import tqdm

from ropevit_mmdet._images import InputImage, find_images, read_images
from ropevit_mmdet.apis.feature_source import FeatureSource, from_checkpoint, from_detector
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.visualization.features import block_features, patch_in
from ropevit_mmdet.visualization.features_figure import (
    ImageFeatures,
    check_rows,
    plot_features,
    plot_heads,
)
from ropevit_mmdet.visualization.figure_file import check_png

CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        check_png(args.out)
        images = find_images(args.images, videos=False)
        check_rows(len(images), len(args.blocks))
        if args.config:
            config = load_config(args.config, args.cfg_options)
            source = from_detector(config, args.checkpoint, device=args.device)
        else:
            source = from_checkpoint(args.checkpoint, args.arch, size=args.size, device=args.device)
        bar = tqdm(read_images(images), total=len(images), unit="image", disable=None)
        looks = [look(source, image, args.blocks, args.patch) for image in bar]
        registers = source.backbone.arch.num_reg_tokens
        plot_features(looks, args.out, num_registers=registers)
        print(f"figure: {args.out}")
        if args.per_head:
            heads = Path(args.out).with_stem(f"{Path(args.out).stem}_heads")
            plot_heads(looks, heads)
            print(f"heads:  {heads}")


def look(
    source: FeatureSource, image: InputImage, blocks: Sequence[int], patch: Sequence[int] | None
) -> ImageFeatures:
    inputs, seen = source.prepare(image.pixels)
    features = block_features(source.backbone, inputs, blocks=blocks, patch=patch)
    return ImageFeatures(
        name=image.path.name,
        pixels=seen,
        patch=patch_in(features[0].patches.shape[:2], patch),
        patch_size=source.backbone.patch_size,
        blocks=features,
    )


def arch_or_name(text: str) -> dict | str:
    try:
        return json.loads(text) if text.startswith("{") else text
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON: {error}") from error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [CONFIG] CHECKPOINT IMAGES [options]",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="the config of a detector, if it is one; a checkpoint; images, directories, patterns",
    )
    parser.add_argument("--out", default="features.png", metavar="FILE.png", help="the figure")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[-1], help="from 0; -1 is the last (default)"
    )
    parser.add_argument(
        "--patch",
        type=int,
        nargs=2,
        metavar=("ROW", "COL"),
        help="whose attention to show, from 0 0 at the top left (default: the middle one)",
    )
    parser.add_argument(
        "--per-head", action="store_true", help="also FILE_heads.png: the attention head by head"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="longer side of an image for a birder checkpoint (default: as it was trained); a "
        "detector's images go through its test pipeline",
    )
    parser.add_argument(
        "--arch",
        type=arch_or_name,
        help="of a birder checkpoint, where its weights do not show it: a name, or the settings "
        "as JSON",
    )
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    args.config = args.paths.pop(0) if args.paths[0].endswith(CONFIG_SUFFIXES) else None
    if len(args.paths) < 2:
        parser.error("give a checkpoint and images; for a detector, its config before them")
    args.checkpoint, *args.images = args.paths
    if args.size is not None and (args.config or args.size < 1):
        parser.error("--size is for birder checkpoints, a number of pixels")
    return args


if __name__ == "__main__":
    main()
