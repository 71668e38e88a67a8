"""Export a detector, or its backbone and neck, to ONNX or torch.export's .pt2, for images of any
height and width in batches of any number. OUT is *.onnx, or *.pt2 with --format torch; it is
compared with PyTorch before it is written.
"""

import argparse
from functools import partial
from pathlib import Path

from ropevit_cli._arguments import add_cfg_options, add_detector, detector_arguments, positive_int
from ropevit_cli.evaluate import PROVIDERS, progress

HELP = "export a detector to ONNX or torch.export"
SHARED = "batch opset normalize precision dynamic calibration images provider".split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_detector(parser, "OUT")
    add = parser.add_argument
    help = "detector: with decoding, NMS and masks (default for onnx); features: backbone and neck"
    help += " (default for torch)"
    add("--part", choices=("detector", "features"), help=help)
    add("--format", choices=("onnx", "torch", "aotinductor"), default="onnx", help="default: onnx")
    help = "of all images, in pixels (default: any)"
    add("--size", type=positive_int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=help)
    add("--batch", type=positive_int, metavar="N", help="images per call (default: any number)")
    add("--opset", type=int, default=18, choices=range(18, 24), help="of ONNX (default: 18)")
    help = "the file takes RGB pixels, uint8, and normalizes them (default: the caller does)"
    add("--normalize", action="store_true", help=help)
    help = "box: probabilities on a small grid over the box (default); pasted: true or false for "
    help += "every pixel of the image"
    add("--masks", choices=("box", "pasted"), default="box", help=help)
    help = "fp16 and int8 of onnx, bf16 of the others; its AP on the validation set must be that "
    help += "of PyTorch, up to 0.002, 0.01 and 0.005 (default: fp32)"
    add("--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32", help=help)
    add("--dynamic", action="store_true", help="int8: ranges of activations at every run")
    help = "training images that give the ranges of int8 (default: 32)"
    add("--calibration", type=positive_int, default=32, metavar="N", help=help)
    help = "validation images that lower precision is checked on (default: all)"
    add("--images", type=positive_int, metavar="N", help=help)
    help = f"runs an ONNX file in the checks: {PROVIDERS}"
    add("--provider", default="CPUExecutionProvider", metavar="NAME", help=help)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis import Detector
    from ropevit_mmdet.deploy import Request, check_request, export_model

    given, checkpoint, (out,) = detector_arguments(args, 1)
    path = Path(out)
    request = Request(
        part=args.part or ("detector" if args.format == "onnx" else "features"),
        file_format=args.format,
        size=args.size and tuple(args.size),
        pasted=args.masks == "pasted",
        **{name: getattr(args, name) for name in SHARED},
    )
    check_request(path, request)
    options = dict(config=given, cfg_options=args.cfg_options, device="cpu")
    detector = Detector(checkpoint, **options)
    # tracing takes a minute
    report = partial(print, flush=True)
    model, config, classes = detector.model, detector.config, detector.classes
    export_model(model, config, classes, path, request, report=report, progress=progress)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
