"""Evaluates exported detectors on the validation set of a config, side by side, next to PyTorch.

FILE is *.onnx or *.pt2 of `ropevit export`. Prints the figures of the config's metrics, the
milliseconds per image, and the differences from the first column: 95 % of its detections with a
score of 0.3 or more differ by less.
"""

import argparse
from collections.abc import Iterable

from ropevit_cli._arguments import add_cfg_options, positive_int

HELP = "evaluate exported detectors"
PROVIDERS = (
    "onnxruntime's, such as CPUExecutionProvider (default) and CUDAExecutionProvider; openvino, "
    "openvino:bf16 and openvino:f16"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="exported detectors")
    add("--config", required=True, help="config file, or name of a packaged config without .py")
    add("--checkpoint", help="of the detector, to evaluate in PyTorch too")
    add("--provider", nargs="+", default=["CPUExecutionProvider"], metavar="NAME", help=PROVIDERS)
    add("--images", type=positive_int, metavar="N", help="use the first N images (default: all)")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis import Detector
    from ropevit_mmdet.deploy.evaluation import evaluate, evaluation_data, open_exported, table
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError

    config = load_config(args.config, args.cfg_options)
    models: dict = {}
    if args.checkpoint:
        models["PyTorch"] = Detector(args.checkpoint, config=config, device="cpu").model
    for file in args.files:
        for provider in args.provider if file.endswith(".onnx") else ["PyTorch"]:
            models[f"{file} {provider}"] = open_exported(file, provider)
    sizes = [model.metadata["size"] for model in models.values() if hasattr(model, "metadata")]
    fixed = {tuple(size) for size in sizes if size}
    if len(fixed) > 1:
        raise UserError(f"the files take images of sizes {sorted(fixed)}: evaluate them one by one")
    data = evaluation_data(config, next(iter(fixed), None))
    print(table(evaluate(models, *data, images=args.images, progress=progress)))


def progress(images: Iterable) -> Iterable:
    """Shows a progress bar in a terminal."""
    from tqdm import tqdm

    return tqdm(images, desc="evaluating", unit="image", disable=None)
