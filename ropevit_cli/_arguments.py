"""Arguments that several subcommands share."""

import argparse


def add_cfg_options(parser: argparse._ActionsContainer) -> None:
    """Adds `--cfg-options`, a list of `KEY=VALUE` that `engine.config.load_config` parses."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help='override settings of the config: a.b=1 c="[1,2]" d="[(1,2),(3,4)]"',
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `CONFIG`, which `engine.config.load_config` reads."""
    parser.add_argument("config", help="config file, or name of a packaged config without .py")


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Adds `--launcher` and the `--local_rank` that launchers pass."""
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="what started the processes of a distributed run; see tools/dist_train.sh",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def positive_int(text: str) -> int:
    """Parses an integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value
