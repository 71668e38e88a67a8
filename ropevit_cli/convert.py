"""Converts labels of YOLO, Pascal VOC, LabelMe or CreateML to COCO's format, and checks them.

Writes OUT/annotations/instances_{train,val,test}.json, OUT/{train,val,test}/ with hard links or
copies of the images, and a config that trains on them. The exit status is 1 if check-data finds an
error.
"""

import argparse

HELP = "convert labels of another format to COCO's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("format", choices=("yolo", "voc", "labelme", "createml"), help="of the labels")
    add("src", metavar="SRC", help="directory of the labels")
    add("-o", "--out-dir", metavar="OUT", required=True, help="directory to write")
    add("--images", metavar="DIRECTORY", help="the images (default: SRC)")
    help = "class names in the order of their labels (default: of the labels, else sorted)"
    add("--classes", nargs="+", default=[], metavar="NAME", help=help)
    add("--config", metavar="FILE.py", help="write the config there instead of printing it")
    help = "the config is for a CPU: a tiny network without pretrained weights, boxes only"
    add("--scratch", action="store_true", help=help)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ropevit_mmdet._output import atomic_file
    from ropevit_mmdet.datasets.conversion import convert
    from ropevit_mmdet.datasets.validation.checks import ERROR, CocoFiles
    from ropevit_mmdet.datasets.validation.report import report_dataset

    done = convert(args.format, args.src, args.out_dir, images=args.images, classes=args.classes)
    errors = 0
    for split in done.images:
        path = Path(args.out_dir) / "annotations" / f"instances_{split}.json"
        files = CocoFiles(path, path.parents[1] / split, trained=split == "train")
        report = report_dataset(files, title=split)
        print(f"{split}:", "\n".join(report.lines()))
        errors += report.findings.count(ERROR)
    for note in done.notes:
        print(f"note: {note}")
    config = done.config(scratch=args.scratch)
    if args.config:
        with atomic_file(args.config) as file:
            file.write(config.encode())
        print(f"{args.config}: trains on it, `ropevit train {args.config}`")
    else:
        print(config)
    return 1 if errors else 0
