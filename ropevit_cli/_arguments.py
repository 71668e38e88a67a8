"""Arguments that several subcommands share."""

import argparse


def add_cfg_options(parser: argparse._ActionsContainer) -> None:
    """Adds `--cfg-options`, a list of `KEY=VALUE` that `engine.config.load_config` parses."""
    help = 'override settings of the config: a.b=1 c="[1,2]" d="[(1,2),(3,4)]"'
    settings: dict = dict(nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help)
    parser.add_argument("--cfg-options", **settings)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `CONFIG`, which `engine.config.load_config` reads."""
    parser.add_argument("config", help="config file, or name of a packaged config without .py")


def add_detector(parser: argparse.ArgumentParser, others: str = "") -> None:
    """Adds `[CONFIG] CHECKPOINT` and other positional arguments; `detector_arguments` splits them.

    A first argument that ends in `.py` or names a packaged config is CONFIG; without one the config
    in the checkpoint is used.
    """
    help = "a detector's checkpoint; before it, a config to use instead of the one in it"
    parser.add_argument("detector", metavar=f"[CONFIG] CHECKPOINT {others}".strip(), help=help)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)


def detector_arguments(
    args: argparse.Namespace, others: int = 0, *, more: bool = False
) -> tuple[str | None, str, list[str]]:
    """Returns CONFIG or None, CHECKPOINT, and `others` more arguments, or `more` than that."""
    from ropevit_mmdet.engine.config import is_config
    from ropevit_mmdet.errors import UserError

    given = [args.detector, *args.rest]
    config = given.pop(0) if is_config(given[0]) else None
    missing, extra = len(given) < 1 + others, len(given) > 1 + others and not more
    if missing or extra:
        raise UserError(
            f"wrong number of arguments: {' '.join([args.detector, *args.rest])}; a config ends in "
            ".py or is a packaged name, and its detector's checkpoint follows it: see --help"
        )
    return config, given[0], given[1:]


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Adds `--launcher` and the `--local_rank` that launchers pass."""
    launchers = ["none", "pytorch", "slurm", "mpi"]
    help = "what started the processes of a distributed run; see tools/dist_train.sh"
    parser.add_argument("--launcher", choices=launchers, default="none", help=help)
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def natural_int(text: str) -> int:
    """Parses an integer of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} must be 0 or more")
    return value


def positive_int(text: str) -> int:
    """Parses an integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value
