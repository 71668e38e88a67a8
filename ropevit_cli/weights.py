"""List the checkpoints that birder publishes for its RoPE ViTs, by architecture.

A config takes any of them by name: init_cfg=dict(type='Pretrained', checkpoint='birder://NAME').
"""

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Sequence
from itertools import groupby

try:
    from ropevit_mmdet.weights.lookup import cache_directory
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_mmdet.weights.published import WEIGHTS, PublishedWeights


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    chosen = [weights for weights in WEIGHTS.values() if matches(weights, args.pattern)]
    if not chosen:
        sys.stderr.write(f"error: no published checkpoint matches {args.pattern!r}\n")
        raise SystemExit(2)
    if args.json:
        print(json.dumps([as_json(weights) for weights in chosen], indent=1))
        return
    print(f"  {'name':50}  pixels      MB  trained on")
    for network, group in groupby(chosen, key=lambda weights: weights.network):
        print(f"arch {network}")
        for weights in group:
            print(
                f"  {weights.name:50}  {weights.side:6}  {weights.megabytes:6.1f}  "
                f"{weights.trained_on}"
            )
    print(f"\nIn a config: checkpoint='birder://NAME'\nDownloads are kept in {cache_directory()}")


def matches(weights: PublishedWeights, pattern: str) -> bool:
    """Whether a name, an architecture or what was trained on holds the pattern, in any case."""
    texts = (weights.name, weights.network, weights.trained_on)
    return any(fnmatch.fnmatch(text.lower(), f"*{pattern.lower()}*") for text in texts)


def as_json(weights: PublishedWeights) -> dict[str, object]:
    """The entry as it is, with its name and URL in full and the path of its download."""
    fields = dataclasses.asdict(weights)
    del fields["directory"]
    path = cache_directory() / weights.file_name
    return {
        "name": weights.name,
        **fields,
        "url": weights.url,
        "path": str(path),
        "downloaded": path.is_file(),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pattern", nargs="?", default="", help="only those that hold it, e.g. reg4_b14 or capi*224"
    )
    parser.add_argument("--json", action="store_true", help="for programs, with URL and sha256")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
