"""Prepare a detector's checkpoint for publication, with a model card; upload both.

Removes optimizer, schedulers, log buffers and random states; of a run with EMA keeps the averaged
weights; strips absolute paths and secrets from the config. Eight digits of the file's hash are
added to the name.
"""

import argparse

HELP = "prepare a checkpoint for publication, or upload it"
WEIGHTS = {
    "EMA": "the averaged ones (EMA); --raw takes those of the last step",
    "raw": "those of the last step, not their average (EMA)",
    "only": "unchanged, the run had no EMA",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", help="checkpoint of a detector, e.g. work_dirs/x/iter_9.pth")
    add("target", nargs="?", help="directory; a name that ends in .pth gets no model card")
    add("--raw", action="store_true", help="the raw weights of a run with EMA")
    add("--hub", metavar="OWNER/NAME", help="upload to this repository of the Hugging Face Hub")
    add("--license", metavar="ID", help="for the model card, e.g. apache-2.0")
    help = "for the model card (default: what the run logged for this checkpoint)"
    add("--metrics", metavar="TEST.json", help=help)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.deploy import publish_checkpoint, publish_model
    from ropevit_mmdet.errors import UserError

    single = bool(args.target) and args.target.endswith(".pth")
    card = {name: getattr(args, name) for name in ("hub", "license", "metrics")}
    if not (args.target or args.hub) or single and any(card.values()):
        raise UserError("publish needs a directory, --hub OWNER/NAME or both")
    if single:
        done = publish_checkpoint(args.checkpoint, args.target, raw=args.raw)
    else:
        done = publish_model(args.checkpoint, args.target, raw=args.raw, **card)
    print(f"wrote    {done.path}")
    print(f"size     {done.size / 2**20:.1f} MiB, before {done.size_before / 2**20:.1f} MiB")
    print(f"weights  {WEIGHTS[done.weights]}")
    print(f"removed  {', '.join(done.removed) or 'nothing'}")
    for i, (old, new) in enumerate(done.redacted.items()):
        print(f"{'' if i else 'redacted':8} {old!r} -> {new!r}")
    if args.hub:
        print(f"use      ropevit predict hf://{args.hub}/{done.path.name} IMAGES")
