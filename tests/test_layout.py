"""The house order: imports point downwards, files stay short, the package does not print."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ropevit_mmdet"
# Lowest floor first: a module or room imports from floors below its own. The same floor: not each
# other.
FLOORS = [
    {"rope_kernel"},
    {"stack", "arch", "linear", "rope", "windows"} | {"errors", "output", "palette", "images"},
    {"facts", "resample", "arguments", "tables", "frozen", "data_checks"}
    | {"datasets", "figure_file"},
    {"vit", "checkpoint"},
    {"weights", "neck", "run"},
    {"backbone"},
    {"layer_decay", "classifier", "benchmark", "prediction"},
    {"analysis", "export", "hooks"},
    {"compare"},
]
# What the arithmetic may need beside the standard library and the package.
TORCH_ONLY = {"arch", "linear", "rope", "rope_kernel", "windows", "tables", "vit", "checkpoint"}
TORCH_ONLY |= {"arguments", "facts", "resample"}
TORCH_ONLY |= {f"weights/{name}" for name in ("download", "identify", "lookup", "published")}
SOURCES = [
    path
    for directory in ("ropevit_mmdet", "configs", "tools", "tests")
    for path in sorted((ROOT / directory).rglob("*.py"))
]


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "ropevit_mmdet" and len(parts) > 1 else None


def floor(module: str) -> int:
    floors = [i for i, modules in enumerate(FLOORS) if module in modules]
    assert floors, f"{module} has no floor: give it one in FLOORS"
    return floors[0]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path):
    name = path.relative_to(PACKAGE).with_suffix("")
    module = name.parts[0]
    if module == "__init__":
        return
    names = imports(path)
    floor(module)  # every module has one
    known = {m for modules in FLOORS for m in modules}
    used = {room(name) for name in names} & known - {module}
    upwards = {other for other in used if floor(other) >= floor(module)}
    assert not upwards, f"{module} imports {upwards} from its own floor or above"
    roots = {name.split(".")[0] for name in names}
    assert "birder" not in roots
    if name.as_posix() in TORCH_ONLY:
        assert not roots & {"mmdet", "mmengine", "mmcv", "numpy", "cv2", "birder"}
    if module in ("arch", "datasets"):
        assert not roots & {"torch", "mmdet", "mmengine", "mmcv"}


def test_what_is_named_here_is_there():
    there = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name.split("/")[0] for name in there} - {"__init__"} == set().union(*FLOORS)
    assert there >= TORCH_ONLY


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_passes_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
