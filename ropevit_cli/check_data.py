"""Find all that is wrong with a dataset in COCO's format, before a run finds it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from mmengine import fileio
from tqdm import tqdm

from ropevit_mmdet.datasets.checked_coco import SPLITS, CocoFiles, coco_files
from ropevit_mmdet.datasets.validation.findings import ERROR, SEVERITIES
from ropevit_mmdet.datasets.validation.report import Report, report_dataset
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors


def main(argv: Sequence[str] | None = None) -> int:
    """0 if no dataset has an error, 1 if one has; warnings do not count."""
    args = parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names can be of any bytes
    reports: list[tuple[str, Report]] = []
    with one_line_errors():
        for files, title in data_sets(args).items():
            report = report_dataset(
                files,
                decode=args.decode,
                progress=lambda items, total, title=title: tqdm(
                    items, total=total, desc=title, unit="image", disable=None, leave=False
                ),
            )
            print(f"{title}:", "\n".join(report.lines(args.show)))
            reports.append((title, report))
        totals = {key: sum(report.count(key) for _, report in reports) for key in SEVERITIES}
        if args.json:
            text = json.dumps(document(reports, totals, args.decode), indent=1) + "\n"
            fileio.put(text.encode(), args.json)
    print(", ".join(f"{number:,} {key}{'s' * (number != 1)}" for key, number in totals.items()))
    if not args.decode:
        print("only the headers of images were read; --decode reads every pixel")
    return 1 if totals[ERROR] else 0


def data_sets(args: argparse.Namespace) -> dict[CocoFiles, str]:
    """The datasets to look at, each with what to call it."""
    if args.ann_file:
        files = CocoFiles(
            Path(args.ann_file), Path(args.img_dir), masks=None, evaluated=True, classes=None
        )
        return {files: "dataset"}
    return coco_files(load_config(args.config, args.cfg_options), args.split)


def document(
    reports: Sequence[tuple[str, Report]], totals: dict[str, int], decoded: bool
) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "decoded": decoded,
        **{f"{key}s": number for key, number in totals.items()},
        "data_sets": [{"split": title, **report.as_json()} for title, report in reports],
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="config file, whose datasets are looked at")
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, help="of the config (default: all that it has)"
    )
    parser.add_argument("--ann-file", metavar="COCO.json", help="instead of a config")
    parser.add_argument("--img-dir", metavar="DIRECTORY", help="the images of --ann-file")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image, on all cores; takes longer"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was found there")
    parser.add_argument(
        "--show",
        type=int,
        default=5,
        metavar="N",
        help="places to show of each kind of error and warning (default: 5)",
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if (args.config is None) == (args.ann_file is None):
        parser.error("give a config, or --ann-file with --img-dir")
    if (args.ann_file is None) != (args.img_dir is None):
        parser.error("--ann-file and --img-dir belong together")
    if args.show < 1:
        parser.error(f"--show {args.show} must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
