"""List the checkpoints that birder publishes for its RoPE ViTs, by architecture."""

import argparse
import fnmatch
import json
import sys
from itertools import groupby
from typing import Any

HELP = "list the checkpoints that birder publishes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="", help="only those that match it: reg4_b14 or capi*224"
    )
    parser.add_argument("--json", action="store_true", help="for programs, with URL and sha256")


def run(args: argparse.Namespace) -> int:
    from ropevit_mmdet.weights.published import WEIGHTS

    pattern = f"*{args.pattern.lower()}*"
    texts = {f"{weights.name} {weights.trained_on}": weights for weights in WEIGHTS.values()}
    chosen = [weights for text, weights in texts.items() if fnmatch.fnmatch(text.lower(), pattern)]
    if not chosen:
        sys.stderr.write(f"error: no published checkpoint matches {args.pattern!r}\n")
        return 2
    if args.json:
        print(json.dumps([_as_json(weights) for weights in chosen], indent=1))
        return 0
    print(f"  {'name':50}  pixels      MB  trained on")
    for network, group in groupby(chosen, key=lambda weights: weights.network):
        print(f"arch {network}")
        for w in group:
            print(f"  {w.name:50}  {w.side:6}  {w.megabytes:6.1f}  {w.trained_on}")
    print("\nIn a config: checkpoint='birder://NAME'")
    return 0


def _as_json(weights: Any) -> dict[str, object]:
    """The entry with its name and URL, and the path of its file if it was downloaded."""
    from ropevit_mmdet.weights.hub import cached_file

    path = cached_file(weights)
    fields = {key: value for key, value in vars(weights).items() if key != "directory"}
    downloaded = dict(path=path and str(path), downloaded=path is not None)
    return {"name": weights.name, **fields, "url": weights.url, **downloaded}
