"""The fallback for mmcv._ext as a module: names, look-ups, precedence of a compiled one."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

from ropevit_mmdet import compat
from tests.processes import run_python


@pytest.fixture
def fallback():
    """A fresh module, not entered in sys.modules."""
    spec = compat.ops.FallbackFinder().find_spec(compat.ops.EXT_NAME)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_that_mmcv_loads():
    """Every name in a call of load_ext("_ext", [...]) in the installed mmcv's sources."""
    (mmcv_dir,) = importlib.util.find_spec("mmcv").submodule_search_locations
    names = set()
    for source in Path(mmcv_dir, "ops").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load_ext"):
                names.update(ast.literal_eval(node.args[1]))
    return names


def test_fallback_has_every_name_that_mmcv_loads(fallback):
    names = names_that_mmcv_loads()
    implemented = compat.ops.functions().keys()
    assert len(names) >= 112 and names >= implemented
    for name in names - implemented | {"line_nms_forward"}:  # the last one of onedl-mmcv
        with pytest.raises(NotImplementedError, match=f"'{name}'.*compiled mmcv"):
            getattr(fallback, name)(1, keyword=2)
    assert "not compiled" in fallback.get_compiler_version()


def test_fallback_looks_like_an_imported_module(fallback):
    assert fallback.__spec__.name == fallback.__name__ == "mmcv._ext"
    assert not hasattr(fallback, "__path__") and not hasattr(fallback, "__wrapped__")
    inspect.getmodule(inspect.currentframe())  # reads __file__ of all modules


def test_install_is_idempotent():
    before = list(sys.meta_path)
    compat.prepare()
    assert sys.meta_path == before
    assert sum(isinstance(finder, compat.ops.FallbackFinder) for finder in before) == 1
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert importlib.util.find_spec("mmcv._extension") is None


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_ext_wins(tmp_path, compiled):
    """With an empty mmcv first on the path that has, or lacks, its own `_ext`."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    if compiled:
        (tmp_path / "mmcv/_ext.py").touch()
    program = """
import importlib.util, sys
from ropevit_mmdet.compat import ops
sys.path.insert(0, sys.argv[1])
for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
    del sys.modules[name]
print(isinstance(importlib.util.find_spec("mmcv._ext").loader, ops.FallbackFinder))
"""
    done = run_python("-c", program, tmp_path)
    assert done.stdout.strip() == str(not compiled), done.stderr


def test_first_use_under_tracing():
    """As of mmdet's get_flops: importing torchvision under `torch.jit.trace` itself fails."""
    program = """
import ropevit_mmdet, sys, torch, mmcv.ops
assert "torchvision" not in sys.modules
maps, rois = torch.rand(1, 3, 8, 8), torch.tensor([[0, 1.0, 1, 5, 5]])
pool = mmcv.ops.RoIAlign(3, 1.0)
torch.testing.assert_close(torch.jit.trace(pool, (maps, rois))(maps, rois), pool(maps, rois))
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
