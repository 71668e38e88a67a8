"""Benchmarks the backbone over image sizes: time, memory and floating point operations.

Variants are interleaved in one process; on a CPU memory is measured in a new process each.
"""

import argparse
import itertools
import json
import shlex
import sys
import time

HELP = "measure time, memory and operations of the backbone over image sizes"
SIZES = [448, 672, 896, 1120, 1344, 1792]
MODES = ["forward", "training"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "windows, windows-cp (with checkpointing), global (default: all)"
    add("--variants", nargs="+", metavar="NAME", help=help)
    help = "image sides in pixels at patch 14, multiples of 56"
    add("--sizes", nargs="+", type=int, default=SIZES, help=help)
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--runs", type=int, default=5, help="timed rounds after a warm-up (default: 5)")
    add("--batch", type=int, default=1, help="images per step (default: 1)")
    add("--device", help="cpu, cuda:0 ... (default: the first GPU, else the CPU)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--threads", type=int, help="CPU threads (default: PyTorch's)")
    add("--json", metavar="FILE", help="write the figures to this file, after each size")


def run(args: argparse.Namespace, peers: dict | None = None) -> None:
    """Benchmarks variants, by default all; `benchmarks/peers.py` adds more."""
    import torch

    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.apis import benchmark, choose_device
    from ropevit_mmdet.errors import UserError

    known = benchmark.VARIANTS | (peers or {})
    names = args.variants or list(known)
    if not set(names) <= set(known) or any(size % 56 for size in args.sizes):
        raise UserError(f"--variants must be of {', '.join(known)}, --sizes multiples of 56")
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings: dict = dict(device=str(choose_device(args.device)), dtype=args.dtype)
    settings |= dict(batch=args.batch, threads=threads)
    report = settings | dict(device=benchmark.device_name(settings["device"]), rows=[], skipped=[])
    report |= dict(torch=torch.__version__, date=time.strftime("%Y-%m-%d"))
    report |= dict(command=shlex.join(["ropevit", *sys.argv[1:]]))
    for pixels, mode in itertools.product(args.sizes, args.modes):
        rows, skipped = benchmark.measure(
            {name: benchmark.Bench(known[name], pixels, mode, **settings) for name in names},
            runs=args.runs,
            progress=lambda line: sys.stderr.write(f"\r{line:78}"),
        )
        report["rows"] += rows
        report["skipped"] += skipped
        if args.json:
            with atomic_file(args.json) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")
    sys.stderr.write("\n")
    print(benchmark.table(report))
