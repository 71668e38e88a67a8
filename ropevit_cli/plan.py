"""Plans a training run of a config on this machine: hours, memory, batch size, accumulation.

Training steps of one and two synthetic images are measured, on a GPU also of four and eight. From
them follow the largest batch that fits into memory, how many passes accumulate the batch that the
schedule is for, and the time.
"""

import argparse
import json

from ropevit_cli._arguments import add_config, positive_int
from ropevit_cli.benchmark import add_measuring, measured

HELP = "tell how long a config trains on this machine, and with which batch size"
BATCHES = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}


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
    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.apis import benchmark, choose_device
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.errors import UserError

    config = load_config(args.config, args.cfg_options)
    benchmark.schedule(config, args.images)
    size = args.size or benchmark.training_side(config)
    device = choose_device(args.device).type
    report = measured(
        args,
        {args.config: args.config},
        sizes=[size],
        modes=["training"],
        batches=BATCHES.get(device, BATCHES["cpu"]),
    )
    if len(report["rows"]) < 2:
        raise UserError(f"a training step of {args.config} fails: {report['skipped'][0]['why']}")
    result = plan_of(args.config, report["rows"], args)
    print(benchmark.table(report))
    print(f"\n{benchmark.text(f'{args.config}, {size} px', result)}")
    if args.json:
        with atomic_file(args.json) as file:
            file.write(json.dumps(report | {"plan": result}, indent=1).encode() + b"\n")


def plan_of(name: str, rows: list[dict], args: argparse.Namespace) -> dict:
    """The plan of a config by name, from its measured rows."""
    from ropevit_mmdet.apis import benchmark, choose_device
    from ropevit_mmdet.engine.config import load_config

    options = vars(args)
    config = load_config(name, args.cfg_options)
    schedule = benchmark.schedule(config, options.get("images"))
    free = benchmark.free_memory(choose_device(args.device))
    return benchmark.plan(schedule, rows, free, gpus=options.get("gpus", 1))
