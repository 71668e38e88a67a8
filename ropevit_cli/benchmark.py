"""Benchmarks detectors, whole and by part: time, memory and operations of a step.

CONFIG is a config file, the name of a packaged config, or mmdet::NAME. `python -m benchmarks.peers`
also measures backbones alone, and detectors and backbones of other libraries.
Variants are interleaved in one process; on a CPU memory is measured in a new process each. Images
are synthetic squares, and weights as initialised or of a checkpoint. A config whose training is
measured at two batch sizes is planned, too, as by `ropevit plan`.
"""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropevit_cli._arguments import add_cfg_options, positive_int

HELP = "measure time, memory and operations of detectors, whole and by part"
MODES = ["forward", "training"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="what to measure")
    help = "image sides in pixels (default: 448 896)"
    add("--sizes", nargs="+", type=positive_int, default=[448, 896], help=help)
    add("--modes", nargs="+", choices=MODES, default=MODES)
    help = "images per step, one or more numbers (default: 1)"
    add("--batch", nargs="+", type=positive_int, default=[1], help=help)
    add("--compile", action="store_true", help="measure each with torch.compile, too")
    help = "detections per image, exactly; as-is: as the weights have them (default: 100)"
    add("--detections", type=detections, default=100, metavar="N", help=help)
    add("--checkpoint", help="a detector's checkpoint, for a single CONFIG")
    help = "images of the config's data loaders, with the time to load them, instead of --sizes"
    add("--data", action="store_true", help=help)
    add_measuring(parser)
    add("--plot", metavar="FILE.png", help="plot the time of the parts")


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Adds what `benchmark` and `plan` share."""
    add = parser.add_argument
    add("--runs", type=positive_int, default=5, help="timed rounds after a warm-up (default: 5)")
    add("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    help = "of automatic mixed precision (default: float32, without; plan: that of the config)"
    add("--dtype", choices=["float32", "bfloat16", "float16"], help=help)
    add("--threads", type=positive_int, help="CPU threads (default: PyTorch's)")
    add("--json", metavar="FILE", help="write the figures to this file, after each size")
    add_cfg_options(parser)


def detections(text: str) -> int | None:
    return None if text == "as-is" else positive_int(text)


def run(args: argparse.Namespace, peers: dict | None = None) -> None:
    """Benchmarks what is named; `benchmarks/peers.py` adds detectors and backbones."""
    from ropevit_mmdet.apis.benchmark.report import plot, table
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.visualization._figure_file import check_png

    sources = {name: (peers or {}).get(name, name) for name in args.configs}
    configs = [name for name, source in sources.items() if name == source]
    if (args.checkpoint and len(args.configs) > 1) or (args.data and len(configs) < len(sources)):
        raise UserError("--checkpoint needs a single CONFIG, --data only configs")
    if args.plot:
        check_png(args.plot)
    sizes = [0] if args.data else args.sizes
    settings: dict = dict(modes=args.modes, batches=args.batch, compiled=args.compile)
    settings |= dict(detections=args.detections, checkpoint=args.checkpoint, data=args.data)
    report, _ = measured(args, sources, sizes=sizes, **settings)
    print(table(report))
    for name, size in itertools.product(configs, sizes):
        rows = [row for row in report["rows"] if (row["name"], row["pixels"]) == (name, size)]
        rows = [row for row in rows if row["mode"] == "training" and not row["compiled"]]
        if len(rows) > 1:
            try:
                print(f"\n{planned(name, rows, args)[0]}")
            except UserError as error:
                print(f"\n{name}: no plan: {error}")
    if args.plot:
        plot(report, args.plot)


def measured(
    args: argparse.Namespace, sources: dict, **settings: Any
) -> tuple[dict, Callable[[dict], None]]:
    """Checks the configs and measures, with progress; returns the report and what saves it."""
    import torch

    from ropevit_mmdet._output import atomic_file, check_output_directory
    from ropevit_mmdet.apis import choose_device
    from ropevit_mmdet.apis.benchmark.measure import benchmark
    from ropevit_mmdet.engine.config import load_config

    for source in sources.values():
        if isinstance(source, str):
            load_config(source, args.cfg_options)
    if args.json:
        check_output_directory(Path(args.json).parent)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)

    def save(report: dict) -> None:
        if args.json:
            report["command"] = shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]])
            with atomic_file(args.json) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")

    settings |= dict(device=str(choose_device(args.device)), dtype=args.dtype or "float32")
    settings |= dict(threads=threads)
    settings |= dict(runs=args.runs, options=tuple(args.cfg_options), save=save)
    report = benchmark(sources, progress=lambda line: sys.stderr.write(f"\r{line:78}"), **settings)
    sys.stderr.write("\n")
    return report, save


def planned(name: str, rows: list[dict], args: argparse.Namespace) -> tuple[str, dict]:
    """The plan of a config at one size, as text and figures."""
    from ropevit_mmdet.apis import choose_device
    from ropevit_mmdet.apis.benchmark.measure import free_memory
    from ropevit_mmdet.apis.benchmark.plan import plan, schedule, text
    from ropevit_mmdet.engine.config import load_config

    images, gpus = getattr(args, "images", None), getattr(args, "gpus", 1)
    aim = schedule(load_config(name, args.cfg_options), images)
    result = plan(*aim, rows, free_memory(choose_device(args.device)), gpus=gpus)
    return text(f"{name}, {rows[0]['pixels']} px", result), result
