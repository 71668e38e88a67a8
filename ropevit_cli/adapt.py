"""Put a RoPE ViT into a detector config of MMDetection.

Writes the config as `_base_` and the differences: backbone, pyramid, strides, normalization,
window size, optimizer. Before the file appears, the model is built, loads the weights and takes a
training step on synthetic data.
"""

import argparse

from ropevit_cli._arguments import positive_int

HELP = "put a RoPE ViT into a detector config of MMDetection"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", help="config file, mmdet::NAME, or name of a packaged config")
    add("--weights", required=True, help="checkpoint, URL, birder://NAME or hf://OWNER/REPO/FILE")
    add("-o", "--out", required=True, metavar="FILE.py", help="config to write")
    help = "native: 3.5, 7, 14 ... at patch 14; pow2: resampled to 4, 8, 16 ... (default: native)"
    add("--strides", choices=["native", "pow2"], help=help)
    help = "longer side of test images, in pixels"
    add("--img-size", type=positive_int, metavar="N", help=help)
    add("--arch", metavar="NAME", help="architecture of the weights, where several fit")


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis import adapt

    options = dict(strides=args.strides, img_size=args.img_size, arch=args.arch)
    adapt(args.config, args.weights, out=args.out, **options)
    print(f"wrote {args.out}: it loads the weights, and takes a training step")
