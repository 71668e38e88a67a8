"""Export a detector to ONNX, or its backbone and neck to ONNX or torch.export's .pt2, for images
of any height and width. The file is compared with PyTorch before it is written.
"""

import argparse
from functools import partial
from pathlib import Path

from ropevit_cli._arguments import add_cfg_options, add_config

HELP = "export a detector to ONNX or torch.export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument(
        "out", type=Path, help="file to write: *.onnx, or *.pt2 with --format torch"
    )
    parser.add_argument(
        "--part",
        choices=("detector", "features"),
        help="detector: RetinaNet with decoding and NMS (default for onnx); features: backbone and "
        "neck of any detector (default for torch)",
    )
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis.predict import Detector
    from ropevit_mmdet.deploy import check_request, export_model
    from ropevit_mmdet.engine.config import load_config

    part = args.part or ("detector" if args.format == "onnx" else "features")
    check_request(args.out, part, args.format)
    config = load_config(args.config, args.cfg_options)
    detector = Detector(config, args.checkpoint, "cpu")
    export_model(
        detector.model,
        config,
        detector.names,
        args.out,
        part=part,
        file_format=args.format,
        report=partial(print, flush=True),  # tracing takes a minute
    )
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")
