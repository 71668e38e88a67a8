"""Make a detector's checkpoint fit to be given away: weights, classes and config, and no more.

Optimizer, schedulers, log buffers and random states go; of a run with EMA the averaged weights
stay; absolute paths and hosts of the author's network go from the config. The name gets eight
digits of the file's hash.
"""

import argparse
import sys
from collections.abc import Sequence

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_mmdet.deploy.publish import publish
from ropevit_mmdet.errors import one_line_errors

WEIGHTS = {
    "EMA": "the averaged ones (EMA); --raw takes those of the last step",
    "raw": "those of the last step, not their average (EMA)",
    "only": "as they are, the run had no EMA",
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        done = publish(args.checkpoint, args.target, raw=args.raw)
    print(f"wrote    {done.path}")
    print(f"size     {done.size / 2**20:.1f} MiB, before {done.size_before / 2**20:.1f} MiB")
    print(f"weights  {WEIGHTS[done.weights]}")
    print(f"removed  {', '.join(done.removed) or 'nothing'}")
    for number, (old, new) in enumerate(done.redacted.items()):
        print(f"{'' if number else 'cleaned':8} {old!r} -> {new!r}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint of a detector, say work_dirs/x/iter_9.pth")
    parser.add_argument("target", help="a name that ends in .pth, or a directory")
    parser.add_argument("--raw", action="store_true", help="the raw weights of a run with EMA")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
