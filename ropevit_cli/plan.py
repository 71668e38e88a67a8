"""Plans a training run of a config on this machine: hours, memory, batch size, accumulation.

Training steps of one and two synthetic images are measured, on a GPU also of four and eight. From
them follow the largest batch that fits into memory, how many passes accumulate the batch that the
schedule is for, and the time. `ropevit benchmark` prints the plan, too, where it can.
"""

import argparse

from ropevit_cli._arguments import add_config, positive_int
from ropevit_cli.benchmark import add_measuring, measured, planned

HELP = "measure how long a config trains on this machine, and with which batch size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add = parser.add_argument
    help = "side of the images in pixels (default: that of the config's batches)"
    add("--size", type=positive_int, help=help)
    help = "in an epoch, of a config that counts epochs (default: those of its dataset)"
    add("--images", type=positive_int, help=help)
    add("--gpus", type=positive_int, default=1, help="that train together (default: 1)")
    add_measuring(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis import choose_device
    from ropevit_mmdet.apis.benchmark.plan import schedule, training_dtype, training_side
    from ropevit_mmdet.apis.benchmark.report import table
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError

    config = load_config(args.config, args.cfg_options)
    _, images = schedule(config, args.images)  # before anything is measured
    if images % args.gpus:
        raise UserError(f"--gpus {args.gpus} does not divide the {images} images of a step")
    size = args.size or training_side(config)
    args.dtype = args.dtype or training_dtype(config)
    on_cpu = choose_device(args.device).type == "cpu"
    batches = (1, 2) if on_cpu else (1, 2, 4, 8)
    sources = {args.config: args.config}
    report, save = measured(args, sources, sizes=[size], modes=["training"], batches=batches)
    if not report["rows"]:
        raise UserError(f"a training step of {args.config} fails: {report['skipped'][0]['why']}")
    print(table(report))
    text, report["plan"] = planned(args.config, report["rows"], args)
    print(f"\n{text}")
    save(report)
