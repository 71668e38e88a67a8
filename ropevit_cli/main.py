"""Entry point of `ropevit`: parses the command line and runs one subcommand.

A subcommand is a module of this package that defines `HELP` (one line), `add_arguments(parser)`
and `run(args)`, which returns the exit status or None. It imports `ropevit_mmdet` and other
packages only inside `run`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = (
    "train",
    "test",
    "predict",
    "check-data",
    "browse",
    "make-shapes",
    "inspect",
    "weights",
    "features",
    "plot",
    "compare",
    "benchmark",
    "export",
    "publish",
    "doctor",
    "mmdet",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ropevit` with the arguments given, by default those of the process.

    Returns:
        The exit status: 0 after success, 2 after an error in what the user named.
    """
    args = build_parser().parse_args(argv)
    if args.command == "doctor":  # must work where ropevit_mmdet cannot be imported
        return args.run(args) or 0
    try:
        from ropevit_mmdet.errors import one_line_errors
    except ImportError as error:
        sys.stderr.write(f"error: {error}; `ropevit doctor` checks the environment\n")
        return 1
    with one_line_errors():
        return args.run(args) or 0


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of `ropevit` with one subparser per command."""
    parser = argparse.ArgumentParser(
        prog="ropevit", description="Train, test and deploy RoPE ViT detectors of MMDetection."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"ropevit_cli.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
