"""Run one of mmdet's own tools where mmcv's ops are stood in for: mmdet_tool.py NAME ARGS...

Without NAME, or with --list: the table of them. docs/mmdet_tools.md says which of them work.
"""

import sys
from collections.abc import Sequence

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_cli._mmdet_tools import (
    choose_tool,
    description,
    find_tools,
    run_tool,
    short_name,
    tools_directory,
)
from ropevit_mmdet.errors import one_line_errors

USAGE = "usage: mmdet_tool.py NAME ARGS...   (the tool's own: mmdet_tool.py NAME --help)"


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    with one_line_errors():
        tools = find_tools(tools_directory())
        if not argv or argv[0] in ("--list", "-h", "--help"):
            print(f"{__doc__.splitlines()[0]}\n\n{USAGE}")
            print_table(tools)
            return
        run_tool(choose_tool(argv[0], tools), argv[1:])


def print_table(tools) -> None:
    directory = None
    for path, file in sorted(tools.items(), key=lambda item: item[0].rpartition("/")):
        if path.rpartition("/")[0] != directory:
            directory = path.rpartition("/")[0]
            print(f"\n{directory or 'training and testing'}")
        text = description(file)
        text = text if len(text) <= 64 else text[:61] + "..."
        print(f"  {short_name(path, tools):33} {text}".rstrip())


if __name__ == "__main__":
    main()
