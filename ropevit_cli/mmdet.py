"""Runs one of MMDetection's own tools with mmcv's ops and checkpoint loading made available.

Without NAME, or with --list, prints the names. A name may be shortened to the end of its path.
"""

import argparse
import runpy
import sys
from pathlib import Path

HELP = "run one of MMDetection's own tools"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="print the names of the tools")
    parser.add_argument(
        "tool",
        nargs=argparse.REMAINDER,
        metavar="NAME ARGS",
        help="name and arguments of a tool: get_flops CONFIG",
    )


def run(args: argparse.Namespace) -> None:
    directory = tools_directory()
    tools = find_tools(directory)
    if args.list or not args.tool:
        print("\n".join(tools))
        return
    name, *argv = args.tool
    file = choose_tool(name, tools)
    sys.argv = [str(file), *argv]
    sys.path.insert(0, str(file.parent))
    sys.path.append(str(directory.parent))  # some import tools.analysis_tools.NAME
    runpy.run_path(str(file), run_name="__main__")


def tools_directory() -> Path:
    """The tools of the installed mmdet."""
    from ropevit_mmdet.compat.config import shipped_directory

    return shipped_directory("mmdet", "tools")


def find_tools(directory: Path) -> dict[str, Path]:
    """The programs in a directory by their path there without suffix: 'misc/print_config'."""
    programs = (
        file
        for file in sorted(directory.rglob("*.py"))
        if "if __name__ == '__main__'" in file.read_text(encoding="utf-8").replace('"', "'")
    )
    return {file.relative_to(directory).with_suffix("").as_posix(): file for file in programs}


def choose_tool(name: str, tools: dict[str, Path]) -> Path:
    """The tool with this path, or the only one whose path ends with it."""
    from ropevit_mmdet.errors import UserError

    name = name.removesuffix(".py")
    matches = [name] if name in tools else [path for path in tools if path.endswith(f"/{name}")]
    if len(matches) == 1:
        return tools[matches[0]]
    hint = f"name one of {', '.join(matches)}" if matches else "--list prints the names"
    raise UserError(f"mmdet has {len(matches) or 'no'} tools named {name!r}: {hint}")
