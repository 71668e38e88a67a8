"""Writes the shapes dataset, on which the demo trains: COCO JSON and PNG files."""

import argparse

HELP = "write the synthetic shapes dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", nargs="?", default="data/shapes", help="directory to write (default: data/shapes)"
    )
    for split, count in (("train", 2000), ("val", 300), ("test", 300)):
        text = f"images of the {split} split (default: {count})"
        parser.add_argument(f"--num-{split}", type=int, default=count, help=text)
    parser.add_argument(
        "--size", type=int, default=224, help="longer side in pixels (default: 224)"
    )
    parser.add_argument(
        "--non-square", type=float, default=0.25, help="share of such images (default: 0.25)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all images (default: 0)")
    parser.add_argument("--workers", type=int, help="processes (default: the processors, max. 8)")


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.datasets.shapes import generate

    names = ("num_train", "num_val", "num_test", "size", "non_square", "seed", "workers")
    summary = generate(args.root, **{name: getattr(args, name) for name in names})
    print(f"{args.root}:")
    for split, counts in summary["splits"].items():
        objects = ", ".join(f"{count} {name}" for name, count in counts["objects"].items())
        total = sum(counts["objects"].values())
        print(
            f"{split:5}  {counts['images']} images ({counts['empty']} empty), {total} objects "
            f"({objects}), {counts['crowds']} crowds"
        )
