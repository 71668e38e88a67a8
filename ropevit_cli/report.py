"""Writes a report of a run, of a comparison or of results: one HTML file for a browser.

WORK_DIR is that of a run; its `results.json`, of `ropevit test --out WORK_DIR/results.json`, adds
AP, confusion matrix and errors. COMPARISON is the directory of `ropevit compare`. RESULTS is a JSON
file of `ropevit test --out` or `ropevit predict`, and needs --config.
"""

import argparse

from ropevit_cli._arguments import add_cfg_options

HELP = "write a report of a run, a comparison or results as one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="WORK_DIR|COMPARISON|RESULTS", help="what the report is about")
    add("-o", "--out", default="report.html", metavar="FILE", help="default: report.html")
    add("--config", help="file or packaged name (default: that of the run)")
    add("--checkpoint", help="for features (default: the last one of the run)")
    help = "minimum of detections in the confusion matrix and the errors (default: 0.3)"
    add("--score-thr", type=float, default=0.3, help=help)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.apis.report import write_report

    names = ("config", "checkpoint", "score_thr", "cfg_options")
    write_report(args.source, args.out, **{name: getattr(args, name) for name in names})
    print(f"report: {args.out}")
