"""Entry point of `ropevit`: parses the command line and runs one subcommand.

A subcommand is a module of this package that defines `HELP` (one line), `add_arguments(parser)`
and `run(args)`, which returns the exit status or None. It imports `ropevit_mmdet` and other
packages only inside `run`.
"""

import argparse
import atexit
import gc
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = (
    "train test predict adapt convert check-data browse make-shapes inspect weights "
    "features plot report compare benchmark plan export evaluate publish doctor mmdet"
).split()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ropevit` with the given arguments, by default those of the process.

    Returns the exit status; an error in what the user named exits with 2.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS)
    args, unknown = parser.parse_known_args(argv)
    if unknown and ("rest" not in args or any(one.startswith("-") for one in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    elif unknown:  # positional arguments that follow an option
        args.rest += unknown
    try:
        if args.command == "doctor":  # must work where ropevit_mmdet cannot be imported
            return args.run(args)
        try:
            import_stack()
            from ropevit_mmdet.errors import one_line_errors
        except Exception as error:  # a broken package may raise anything
            if os.environ.get("ROPEVIT_DEBUG") == "1":
                raise
            cause = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"error: {cause}; `ropevit doctor` checks the environment\n")
            return 1
        with one_line_errors():
            return args.run(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Builds the parser of `ropevit` with one subparser per command."""
    parser = argparse.ArgumentParser(
        prog="ropevit", description="Train, test and deploy RoPE ViT detectors of MMDetection."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        module = importlib.import_module(f"ropevit_cli.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def import_stack() -> None:
    """Imports PyTorch and mmdet without searching their hundred thousands of objects for garbage.

    These then stay out of later searches, also of the processes that load data.
    """
    if "ropevit_mmdet" in sys.modules:
        return
    gc.disable()
    try:
        import ropevit_mmdet  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else nanobind reports Triton's objects as leaked


if __name__ == "__main__":
    sys.exit(main())
