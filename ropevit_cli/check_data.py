"""Checks the datasets of a config, or one annotation file, with their images.

The exit status is 1 if a dataset has an error; warnings do not count.
"""

import argparse

from ropevit_cli._arguments import add_cfg_options

HELP = "check datasets in COCO's format before training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="config file or packaged name")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "val", "test"),
        help="splits of the config to check (default: all)",
    )
    parser.add_argument("--ann-file", metavar="COCO.json", help="file to check instead of a config")
    parser.add_argument("--img-dir", metavar="DIRECTORY", help="the images of --ann-file")
    parser.add_argument("--decode", action="store_true", help="decode every image; takes longer")
    parser.add_argument("--json", metavar="FILE", help="write all findings there")
    parser.add_argument(
        "--show", type=int, default=5, metavar="N", help="entries to print per check (default: 5)"
    )
    add_cfg_options(parser)
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from tqdm import tqdm

    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.datasets.validation import (
        ERROR,
        SEVERITIES,
        CocoFiles,
        coco_files,
        report_dataset,
    )
    from ropevit_mmdet.engine.config import load_config

    if (args.config is None) == (args.ann_file is None):
        args.error("give a config, or --ann-file with --img-dir")
    if (args.ann_file is None) != (args.img_dir is None):
        args.error("--ann-file and --img-dir belong together")
    if args.ann_file:
        datasets = {CocoFiles(Path(args.ann_file), Path(args.img_dir)): "dataset"}
    else:
        datasets = coco_files(load_config(args.config, args.cfg_options), args.split)
    reports = []
    for files, title in datasets.items():
        bar = tqdm(desc=title, unit="image", disable=None, leave=False)
        report = report_dataset(files, decode=args.decode, progress=bar.update)
        reports.append((title, report))
        bar.close()
        print(f"{title}:", "\n".join(report.lines(args.show)))
    totals = {key: sum(one.findings.count(key) for _, one in reports) for key in SEVERITIES}
    if args.json:
        content = {"decoded": args.decode, **{f"{key}s": n for key, n in totals.items()}}
        content["datasets"] = [{"split": title, **one.as_json()} for title, one in reports]
        with atomic_file(args.json) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    print(", ".join(f"{n:,} {key}{'s' * (n != 1)}" for key, n in totals.items()))
    if not args.decode:
        print("only the headers of images were read; --decode reads every pixel")
    return 1 if totals[ERROR] else 0
