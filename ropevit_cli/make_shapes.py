"""Write the embedded shapes dataset, on which the demo trains: COCO JSON and PNG files."""

import argparse
import sys
from typing import Any

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from tqdm import tqdm

from ropevit_mmdet.datasets.shapes import dataset as shapes


def main() -> None:
    args = parse_args()
    with tqdm(desc="drawing", unit="image", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            summary = shapes.generate(
                args.root,
                num_train=args.num_train,
                num_val=args.num_val,
                num_test=args.num_test,
                size=args.size,
                non_square=args.non_square,
                seed=args.seed,
                workers=args.workers,
                overwrite=args.overwrite,
                progress=progress,
            )
        except (ValueError, OSError) as error:
            bar.leave = False
            bar.close()
            hint = " (--overwrite does so)" if "overwrite it" in str(error) else ""
            sys.exit(f"make_shapes: error: {error}{hint}")
        except KeyboardInterrupt:
            bar.close()
            sys.exit("make_shapes: interrupted, nothing written")
        if summary["reused"]:
            bar.leave = False
    print(f"{args.root}: {'already there' if summary['reused'] else 'written'}")
    for split, counts in summary["splits"].items():
        print(describe(split, counts))


def describe(split: str, counts: dict[str, Any]) -> str:
    """One line on a split."""
    objects = ", ".join(f"{count} {name}" for name, count in counts["objects"].items())
    sizes = ", ".join(f"{count} {name}" for name, count in counts["sizes"].items())
    return (
        f"{split:5}  {counts['images']} images ({counts['empty']} empty), "
        f"{sum(counts['objects'].values())} objects ({objects}; {sizes}), {counts['crowds']} crowds"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("root", nargs="?", default="data/shapes", help="directory to write")
    parser.add_argument("--num-train", type=int, default=2000, help="images to train on")
    parser.add_argument("--num-val", type=int, default=300, help="images to validate on")
    parser.add_argument("--num-test", type=int, default=300, help="images to test on")
    parser.add_argument("--size", type=int, default=224, help="longer side in pixels")
    parser.add_argument(
        "--non-square", type=float, default=0.25, help="share of images that are not square"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed: other images")
    parser.add_argument("--workers", type=int, help="processes; default: the processors, at most 8")
    parser.add_argument("--overwrite", action="store_true", help="replace another shapes dataset")
    return parser.parse_args()


if __name__ == "__main__":
    main()
