"""Finds mmdet's own tools (analysis, converters, deployment ...) and runs them under our stack.

mmdet's wheel brings them as `mmdet/.mim/tools`, a source checkout as `tools` beside the package.
What imports mmengine does so late; the stack is prepared by whoever imports `ropevit_mmdet`.
"""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PROGRAM = 'if __name__ == "__main__"'
# What pip calls packages that mmdet's tools import under other names.
DISTRIBUTIONS = {
    "cityscapesscripts": "cityscapesScripts",
    "model_archiver": "torch-model-archiver",
    "panopticapi": "git+https://github.com/cocodataset/panopticapi.git",
    "ensemble_boxes": "ensemble-boxes",
}
UNSAID_NEEDS = {"benchmark": "psutil"}  # ends in an AttributeError of NoneType without it


def tools_directory() -> Path:
    """The directory of the installed mmdet's tools; raises ValueError if it came without them."""
    (package,) = importlib.util.find_spec("mmdet").submodule_search_locations
    for directory in (Path(package) / ".mim" / "tools", Path(package).parent / "tools"):
        if (directory / "analysis_tools").is_dir():
            return directory
    raise ValueError(f"mmdet at {package} came without its tools: pip install mmdet==3.3.0")


def find_tools(directory: Path) -> dict[str, Path]:
    """Every program below a directory, by its path there without suffix: 'misc/print_config'."""
    files = (file for file in directory.rglob("*.py") if _is_program(file))
    named = {file.relative_to(directory).with_suffix("").as_posix(): file for file in files}
    return dict(sorted(named.items()))


def choose_tool(name: str, tools: dict[str, Path]) -> Path:
    """The tool of a name: its path in `tools`, or the end of one if no other ends like that.

    Raises ValueError with the candidates, or with names that are close.
    """
    wanted = name.removesuffix(".py").strip("/")
    if wanted in tools:
        return tools[wanted]
    ending = [path for path in tools if path.endswith(f"/{wanted}")]
    if len(ending) == 1:
        return tools[ending[0]]
    if ending:
        raise ValueError(f"mmdet has several tools {name!r}: choose {' or '.join(ending)}")
    short = {path.rpartition("/")[2]: path for path in tools}
    close = difflib.get_close_matches(wanted.rpartition("/")[2], short, n=3)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"mmdet has no tool {name!r}: {meant}--list shows them all")


def short_name(path: str, tools: dict[str, Path]) -> str:
    """The shortest name that `choose_tool` takes for a path of `tools`."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        name = "/".join(parts[-count:])
        if name not in tools and sum(other.endswith(f"/{name}") for other in tools) == 1:
            return name
    return path


def description(file: Path) -> str:
    """The first line that a tool says about itself: of its docstring, else of its --help."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    for node in ast.walk(tree):
        if not text and isinstance(node, ast.keyword) and node.arg == "description":
            text = node.value.value if isinstance(node.value, ast.Constant) else None
    return " ".join(text.strip().partition("\n\n")[0].split()) if text else ""


def run_tool(file: Path, argv: Sequence[str]) -> None:
    """Run a tool in this process as `python file *argv` would, with what is imported already.

    Pickles that it opens by mmengine, such as files of predictions, are read without running
    anything that is in them. Raises ImportError where a package is missing that the tool alone
    needs, ValueError for a pickle that holds more than data, and whatever the tool raises.
    """
    package = UNSAID_NEEDS.get(file.stem, "")
    if package and importlib.util.find_spec(package) is None:
        raise _missing(file, package)
    sys.argv = [str(file), *argv]
    sys.path.insert(0, str(file.parent))
    sys.path.append(str(tools_directory().parent))  # some import tools.analysis_tools.NAME
    try:
        with _safe_pickles():
            runpy.run_path(str(file), run_name="__main__")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise
        raise _missing(file, package) from error


@contextmanager
def _safe_pickles() -> Iterator[None]:
    from mmengine.fileio.handlers import PickleHandler

    from ropevit_mmdet.compat.plain_pickle import unpickle

    def load_from_fileobj(self: PickleHandler, file: IO[bytes], encoding: str = "ASCII") -> Any:
        return unpickle(file.read(), "a pickle that the tool opens", encoding)

    before = PickleHandler.load_from_fileobj
    PickleHandler.load_from_fileobj = load_from_fileobj
    try:
        yield
    finally:
        PickleHandler.load_from_fileobj = before


def _missing(file: Path, package: str) -> ImportError:
    return ImportError(
        f"mmdet's tool {file.stem} needs the package {package!r}, which is not installed: "
        f"pip install {DISTRIBUTIONS.get(package, package)}"
    )


def _is_program(file: Path) -> bool:
    return PROGRAM in file.read_text(encoding="utf-8").replace("'", '"')
