"""Arguments that several subcommands share."""

import argparse


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--cfg-options`, with the syntax of MMDetection's tools.

    `args.cfg_options` is the list of `KEY=VALUE` strings; `engine.config.load_config` parses it.
    """
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help='override settings of the config: a.b=1 c="[1,2]" d="[(1,2),(3,4)]"',
    )
