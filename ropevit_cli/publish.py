"""Prepare a detector's checkpoint for publication, with a model card; upload both.

Removes optimizer, schedulers, log buffers and random states; of a run with EMA keeps the averaged
weights; strips absolute paths and secrets from the config. Eight digits of the file's hash are
added to the name.
"""

import argparse

HELP = "prepare a checkpoint for publication, or upload it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", help="checkpoint of a detector, e.g. work_dirs/x/iter_9.pth")
    add("target", nargs="?", help="directory; a name that ends in .pth gets no model card")
    add("--hub", metavar="OWNER/NAME", help="upload to this repository of the Hugging Face Hub")
    add("--license", metavar="ID", help="for the model card, e.g. apache-2.0")


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.deploy import publish_checkpoint, publish_model
    from ropevit_mmdet.errors import UserError

    single = bool(args.target) and args.target.endswith(".pth")
    if not (args.target or args.hub) or single and (args.hub or args.license):
        raise UserError("publish needs a directory, --hub OWNER/NAME or both")
    if single:
        done = publish_checkpoint(args.checkpoint, args.target)
    else:
        done = publish_model(args.checkpoint, args.target, hub=args.hub, license=args.license)
    print(f"wrote    {done.path}")
    print(f"weights  {'averaged (EMA)' if 'ema_state_dict' in done.removed else 'unchanged'}")
    print(f"removed  {', '.join(done.removed) or 'nothing'}")
    for i, (old, new) in enumerate(done.redacted.items()):
        print(f"{'' if i else 'redacted':8} {old!r} -> {new!r}")
    if args.hub:
        print(f"use      ropevit predict hf://{args.hub}/{done.path.name} IMAGES")
