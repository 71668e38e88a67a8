"""The layout: imports point downwards, files stay short, one registered class per file."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ropevit_mmdet"
# Lowest first: a directory or module imports only from levels below its own.
LEVELS = [
    {"errors"},
    {"_output", "_images"},
    {"compat"},
    {"weights"},
    {"models"},
    {"datasets", "evaluation", "visualization"},
    {"deploy", "engine"},
    {"apis"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
LIBRARY = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "ropevit_cli").rglob("*.py")])
DIRECTORIES = ("benchmarks", "configs", "examples", "tests", "tools")
FILES = [*LIBRARY, *(file for name in DIRECTORIES for file in sorted((ROOT / name).rglob("*.py")))]


class _Runtime(ast.NodeTransformer):
    """Removes `if TYPE_CHECKING:` blocks."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


TREES = {file: _Runtime().visit(ast.parse(file.read_text(encoding="utf-8"))) for file in LIBRARY}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file) for file in LIBRARY}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a tree imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def directory(module: str) -> str:
    """The directory or module directly in the package that `module` belongs to, else ''."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "ropevit_mmdet" else ""


def test_package_has_few_entries_and_each_a_level():
    entries = {file.stem for file in PACKAGE.iterdir() if file.suffix in ("", ".py")}
    assert entries - {"__init__", "__pycache__"} == LEVEL.keys() and len(LEVEL) <= 14


def test_imports_point_downwards():
    upwards = [
        f"{module_name(file)} -> {module}"
        for file, tree in TREES.items()
        if (own := directory(module_name(file)))
        for module in imported(tree)
        if module.startswith("ropevit_cli")
        or (other := directory(module)) != own
        and other
        and LEVEL[other] >= LEVEL[own]
    ]
    assert not upwards
    assert "birder" not in {
        name.split(".")[0] for tree in TREES.values() for name in imported(tree)
    }


def test_modules_import_without_cycles():
    graph = {
        module_name(file): MODULES.intersection(imported(tree)) for file, tree in TREES.items()
    }
    del graph["ropevit_mmdet"]  # registers everything
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_commands_import_the_standard_library_only():
    """At module level: `ropevit --help` works where the mm packages are absent."""
    allowed = sys.stdlib_module_names | {"ropevit_cli"}
    others = [
        f"{file.name}: {module}"
        for file in sorted((ROOT / "ropevit_cli").glob("*.py"))
        for node in TREES[file].body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for module in imported(node)
        if module.split(".")[0] not in allowed
    ]
    assert not others


def test_registered_class_has_its_own_file():
    for file, tree in TREES.items():
        registered = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            if any("register_module" in ast.unparse(item) for item in node.decorator_list)
        ]
        assert len(registered) <= 1, file
        assert all(file.stem.replace("_", "") in name.lower() for name in registered), file


def test_every_package_has_a_docstring():
    packages = [file for file in LIBRARY if file.name == "__init__.py"]
    assert all(ast.get_docstring(TREES[file]) for file in packages)
    assert {file.parent for file in LIBRARY} == {file.parent for file in packages}


def test_errors_are_few():
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in LIBRARY)
    raises = sum(isinstance(node, ast.Raise) for tree in TREES.values() for node in ast.walk(tree))
    assert 1000 * raises <= 10 * lines


def test_files_are_short():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert not {str(file): length for file, length in lengths.items() if length >= 400}
