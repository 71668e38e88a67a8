"""Writes a report of a run, of a comparison or of results: one HTML file for a browser.

SOURCE is the work directory of a run, whose `results.json` is read if it has one; the directory of
`ropevit compare`; or a JSON file of `ropevit test --out FILE.json` or `ropevit predict`, with
--config.
"""

import argparse

from ropevit_cli._arguments import add_cfg_options, positive_int

HELP = "write a report of a run, a comparison or results as one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="WORK_DIR|COMPARISON|RESULTS", help="what the report is about")
    add("-o", "--out", default="report.html", metavar="FILE", help="default: report.html")
    add("--config", help="file or packaged name (default: the one in WORK_DIR)")
    add("--results", metavar="FILE.json", help="of a test (default: WORK_DIR/results.json)")
    add("--checkpoint", help="for feature maps (default: the last one in WORK_DIR)")
    add("--score-thr", type=float, default=0.3, help="of errors and confusion matrix (0.3)")
    add("--tp-iou-thr", type=float, default=0.5, help="of errors and confusion matrix (0.5)")
    add("--num-errors", type=int, default=60, help="thumbnails (default: 60)")
    add("--num-features", type=int, default=2, help="images with feature maps (default: 2)")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from dataclasses import fields

    from ropevit_mmdet.apis.report import Settings, write_report

    settings = Settings(**{one.name: getattr(args, one.name) for one in fields(Settings)})
    write_report(args.source, args.out, settings)
    print(f"report: {args.out}")
