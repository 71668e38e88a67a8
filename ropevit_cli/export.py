"""Export a detector to ONNX, or its backbone and neck to ONNX or torch.export's .pt2, for images
of any height and width; the file is checked against PyTorch before it is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")


from ropevit_mmdet.apis.predict import Predictor
from ropevit_mmdet.deploy.write import FORMATS, PARTS, check_request, export
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    path = Path(args.out)
    with one_line_errors():
        check_request(path, args.format)
        config = load_config(args.config, args.cfg_options)
        predictor = Predictor(config, args.checkpoint, "cpu")
        export(predictor, config, path, part=args.part, kind=args.format, say=say)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB")


def say(line: str) -> None:
    print(line, flush=True)  # tracing takes a minute, also where the output goes into a log


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of a detector")
    parser.add_argument("out", help="file to write: *.onnx, or *.pt2 with --format torch")
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="detector: RetinaNet with decoding and NMS (the default of onnx); features: backbone "
        "and neck of any detector (the default of torch)",
    )
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.part is None:
        args.part = "detector" if args.format == "onnx" else "features"
    return args


if __name__ == "__main__":
    main()
