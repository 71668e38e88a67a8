"""List the checkpoints that birder and timm publish for their RoPE ViTs, by architecture."""

import argparse
import fnmatch
import sys
from itertools import groupby
from typing import Any

HELP = "list the checkpoints that birder and timm publish"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="", help="only those that match it: reg4_b14 or capi*224"
    )
    parser.add_argument(
        "--source", choices=("birder", "timm"), default="birder", help="default: birder"
    )


def run(args: argparse.Namespace) -> int:
    from ropevit_mmdet.weights.other_architectures import TIMM
    from ropevit_mmdet.weights.published import WEIGHTS

    texts: dict[str, Any] = {f"{name} {row.trained_on}": row for name, row in WEIGHTS.items()}
    texts = {name: name for name in TIMM} if args.source == "timm" else texts
    pattern = f"*{args.pattern.lower()}*"
    chosen = [row for text, row in texts.items() if fnmatch.fnmatch(text.lower(), pattern)]
    if not chosen:
        sys.stderr.write(f"error: no published checkpoint matches {args.pattern!r}\n")
        return 2
    if args.source == "timm":
        for name in chosen:
            row = TIMM[name]
            print(f"{name:42}  {row.side:4} pixels  first of its weights: {row.tag}")
        print("\nIn a config: arch='NAME', checkpoint='timm://NAME' or 'timm://NAME.TAG'")
        return 0
    print(f"  {'name':50}  pixels      MB  trained on")
    for network, group in groupby(chosen, key=lambda weights: weights.network):
        print(f"arch {network}")
        for w in group:
            print(f"  {w.name:50}  {w.side:6}  {w.megabytes:6.1f}  {w.trained_on}")
    print("\nIn a config: checkpoint='birder://NAME'")
    return 0
