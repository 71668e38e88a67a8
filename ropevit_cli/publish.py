"""Prepare a detector's checkpoint for publication.

Removes optimizer, schedulers, log buffers and random states; of a run with EMA keeps the averaged
weights; strips absolute paths and secrets from the config. Eight digits of the file's hash are
added to the name.
"""

import argparse

HELP = "prepare a checkpoint for publication"
WEIGHTS = {
    "EMA": "the averaged ones (EMA); --raw takes those of the last step",
    "raw": "those of the last step, not their average (EMA)",
    "only": "unchanged, the run had no EMA",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of a detector, e.g. work_dirs/x/iter_9.pth")
    parser.add_argument("target", help="a name that ends in .pth, or a directory")
    parser.add_argument("--raw", action="store_true", help="the raw weights of a run with EMA")


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.deploy import publish_checkpoint

    done = publish_checkpoint(args.checkpoint, args.target, raw=args.raw)
    print(f"wrote    {done.path}")
    print(f"size     {done.size / 2**20:.1f} MiB, before {done.size_before / 2**20:.1f} MiB")
    print(f"weights  {WEIGHTS[done.weights]}")
    print(f"removed  {', '.join(done.removed) or 'nothing'}")
    for i, (old, new) in enumerate(done.redacted.items()):
        print(f"{'' if i else 'redacted':8} {old!r} -> {new!r}")
