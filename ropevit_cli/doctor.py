"""Checks the environment and prints each finding with its fix.

Needs only Python. The exit status is 1 if something must be fixed.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ropevit_cli._environment import examine

HELP = "check the environment; needs only Python"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=1) if args.json else "\n".join(_lines(report)))
    return 0 if report["healthy"] else 1


def _lines(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield "Machine"
    gpus = machine["gpus"] or ["no NVIDIA GPU: everything works except --amp, slowly"]
    yield from (f"        {text}" for text in (machine["python"], machine["system"], *gpus))
    yield "Packages"
    yield from (f"        {name} {text}" for name, text in sorted(report["versions"].items()))
    yield "Findings" if report["findings"] else "No findings."
    for finding in report["findings"]:
        yield f"  {finding['level']}  {finding['text']}"
        yield f"        see docs/troubleshooting.md#{finding['code']}"
