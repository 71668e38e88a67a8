"""Export a detector to ONNX, or its backbone and neck to ONNX or torch.export's .pt2, for images
of any height and width. OUT is *.onnx, or *.pt2 with --format torch; it is compared with PyTorch
before it is written.
"""

import argparse
from functools import partial
from pathlib import Path

from ropevit_cli._arguments import add_cfg_options, add_detector, detector_arguments

HELP = "export a detector to ONNX or torch.export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_detector(parser, "OUT")
    parser.add_argument(
        "--part",
        choices=("detector", "features"),
        help="detector: RetinaNet with decoding and NMS (default for onnx); features: backbone and "
        "neck of any detector (default for torch)",
    )
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis import Detector
    from ropevit_mmdet.deploy import check_request, export_model

    config, checkpoint, (out,) = detector_arguments(args, 1)
    path = Path(out)
    part = args.part or ("detector" if args.format == "onnx" else "features")
    check_request(path, part, args.format)
    options = dict(config=config, cfg_options=args.cfg_options, device="cpu")
    detector = Detector(checkpoint, **options)
    export_model(
        detector.model,
        detector.config,
        detector.classes,
        path,
        part=part,
        file_format=args.format,
        report=partial(print, flush=True),  # tracing takes a minute
    )
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
