"""Checks the datasets of a config, or one annotation file, with their images.

The exit status is 1 if a dataset has an error; warnings do not count.
"""

import argparse
from typing import Any

from ropevit_cli._arguments import add_cfg_options

HELP = "check datasets in COCO's format before training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    data, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    data.add_argument("config", nargs="?", help="config file or packaged name")
    data.add_argument("--ann-file", metavar="COCO.json", help="file to check instead of a config")
    help = "splits of the config to check (default: all)"
    add("--split", nargs="+", choices=("train", "val", "test"), help=help)
    help = "the images of --ann-file (default: next to it)"
    add("--img-dir", metavar="DIRECTORY", help=help)
    help = "write a copy of the annotation file with ids, headings and file names corrected"
    add("--fix", metavar="OUT.json", help=help)
    add("--decode", action="store_true", help="decode every image; takes longer")
    add("--json", metavar="FILE", help="write all findings there")
    help = "entries to print per check (default: 5)"
    add("--show", type=int, default=5, metavar="N", help=help)
    add_cfg_options(parser)
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    from ropevit_mmdet.datasets.validation.checks import ERROR, SEVERITIES
    from ropevit_mmdet.datasets.validation.report import report_dataset

    datasets = _datasets(args)
    if args.fix:
        datasets = _fixed(args, datasets)
    reports = []
    for files, title in datasets.items():
        report = report_dataset(files, decode=args.decode, title=title)
        reports.append((title, report))
        print(f"{title}:", "\n".join(report.lines(args.show)))
        if report.findings.fixable and not args.fix:
            split = title.split(", ")[0]
            alone = sum(split in other.split(", ") for other in datasets.values()) == 1
            options = [args.config, "--split", split] if args.config and alone else []
            print(f"  to fix: {_fix_command(report.files, options, args.cfg_options)}")
    totals = {key: sum(one.findings.count(key) for _, one in reports) for key in SEVERITIES}
    if args.json:
        counts = {f"{key}s": number for key, number in totals.items()}
        parts = [{"split": title, **one.as_json()} for title, one in reports]
        _write(args.json, {"decoded": args.decode, **counts, "datasets": parts}, indent=1)
    print(", ".join(f"{n:,} {key}{'s' * (n != 1)}" for key, n in totals.items()))
    if not args.decode:
        print("only the headers of images were read; --decode reads every pixel")
    return 1 if totals[ERROR] else 0


def _datasets(args: argparse.Namespace) -> dict:
    """The datasets to check, with their titles."""
    from pathlib import Path

    from ropevit_mmdet.datasets.validation.checks import CocoFiles
    from ropevit_mmdet.datasets.validation.config import coco_files
    from ropevit_mmdet.engine.config import load_config

    if args.config:
        if args.img_dir:
            args.error("--img-dir belongs to --ann-file")
        return coco_files(load_config(args.config, args.cfg_options), args.split)
    ann_file = Path(args.ann_file)
    return {CocoFiles(ann_file, Path(args.img_dir or ann_file.parent)): "dataset"}


def _fixed(args: argparse.Namespace, datasets: dict) -> dict:
    """Corrects the only dataset; returns it with the new annotation file."""
    from pathlib import Path

    from ropevit_mmdet.datasets.validation.config import image_files
    from ropevit_mmdet.datasets.validation.fixes import fix_annotations

    if len(datasets) > 1:
        args.error(f"--fix corrects one of the {len(datasets)} annotation files: add --split")
    ((files, title),) = datasets.items()
    content, changes = fix_annotations(files)
    _write(args.fix, content)
    print(f"{args.fix}: {'; '.join(changes) or 'nothing to correct'}")
    directory, _ = image_files(content, files)  # next to the original, not to the copy
    return {files._replace(ann_file=Path(args.fix), img_dir=directory): title}


def _fix_command(files: tuple, config: list[str], cfg_options: list[str] | None) -> str:
    """The command that corrects an annotation file, which a split of `config` has alone."""
    import shlex

    ann_file, img_dir = files[:2]
    words = ["--ann-file", ann_file, "--img-dir", img_dir]
    if config:
        words = [*config, *(["--cfg-options", *cfg_options] if cfg_options else [])]
    words += ["--fix", ann_file.with_name(f"{ann_file.stem}_fixed.json")]
    return shlex.join(["ropevit", "check-data", *map(str, words)])


def _write(path: str, content: dict, **options: Any) -> None:
    import json

    from ropevit_mmdet._output import atomic_file

    with atomic_file(path) as file:
        file.write(json.dumps(content, **options).encode() + b"\n")
