"""Benchmarks the backbone over image sizes: time, memory and floating point operations.

Variants are interleaved in one process; on a CPU memory is measured in a new process each.
"""

import argparse
import itertools
import json
import shlex
import sys

HELP = "measure time, memory and operations of the backbone over image sizes"
SIZES = [448, 672, 896, 1120, 1344, 1792]
MODES = ["forward", "training"]
DTYPES = ["float32", "bfloat16", "float16"]


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
    add("--dtype", choices=DTYPES, default="float32")
    add("--compile", action="store_true", help="run through torch.compile")
    add("--threads", type=int, help="CPU threads (default: PyTorch's)")
    help = "also find the largest batch on GPUs with this much memory"
    add("--max-batch", nargs="+", type=float, default=[], metavar="GB", help=help)
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--json", metavar="FILE", help="write the figures to this file, or continue it")
    add("--plot", metavar="FILE.png", help="also plot time and memory over size")


def run(args: argparse.Namespace, peers: dict | None = None) -> None:
    """Benchmarks variants, by default all; `benchmarks/peers.py` adds more."""
    import torch

    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.apis import benchmark, choose_device
    from ropevit_mmdet.errors import UserError
    from ropevit_mmdet.visualization import check_png

    known = benchmark.VARIANTS | (peers or {})
    names = args.variants or list(known)
    if not set(names) <= set(known) or any(size % 56 for size in args.sizes):
        raise UserError(f"--variants must be of {', '.join(known)}, --sizes multiples of 56")
    if args.plot:
        check_png(args.plot)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = dict(device=str(choose_device(args.device)), dtype=args.dtype, batch=args.batch)
    settings |= dict(compiled=args.compile, threads=threads)
    command = shlex.join(["ropevit", *sys.argv[1:]])
    report = benchmark.begin(benchmark.settings_of(**settings), args.json, command=command)
    for pixels, mode in itertools.product(args.sizes, args.modes):
        if benchmark.is_measured(report, names, pixels, mode, gigabytes=args.max_batch):
            continue
        rows, skipped = benchmark.measure(
            {name: benchmark.Bench(known[name], pixels, mode, **settings) for name in names},
            runs=args.runs,
            memory=not args.no_memory,
            gigabytes=args.max_batch,
            progress=lambda line: sys.stderr.write(f"\r{line:78}"),
        )
        benchmark.replace_rows(report, rows, skipped)
        if args.json:
            with atomic_file(args.json) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")
    sys.stderr.write("\n")
    print(benchmark.table(report))
    if args.plot:
        benchmark.plot(report, args.plot)
