"""The fallback for mmcv._ext as a module: names, look-ups, precedence of a compiled one."""

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

from ropevit_mmdet import compat

FALLBACK = compat.ops.fallback_module()


def test_fallback_has_every_name_that_mmcv_loads():
    """Every name in a call of load_ext("_ext", [...]) in the installed mmcv's sources."""
    (mmcv_dir,) = importlib.util.find_spec("mmcv").submodule_search_locations
    text = "".join(source.read_text() for source in Path(mmcv_dir, "ops").glob("*.py"))
    calls = re.findall(r"load_ext\(\s*'_ext',\s*(\[.*?\])", text, re.DOTALL)
    names = {name for call in calls for name in ast.literal_eval(call)}
    implemented = {name for name in vars(FALLBACK) if not name.startswith("__")}
    assert len(names) >= 112 and names >= implemented
    for name in names - implemented | {"line_nms_forward"}:  # the last one of onedl-mmcv
        with pytest.raises(NotImplementedError, match=f"'{name}'.*compiled mmcv"):
            getattr(FALLBACK, name)(1, keyword=2)
    assert "not compiled" in FALLBACK.get_compiler_version()


def test_fallback_looks_like_an_imported_module():
    assert FALLBACK.__spec__.name == FALLBACK.__name__ == "mmcv._ext"
    assert not hasattr(FALLBACK, "__path__") and not hasattr(FALLBACK, "__wrapped__")
    inspect.getmodule(inspect.currentframe())  # reads __file__ of all modules


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_ext_wins(tmp_path, compiled, monkeypatch):
    """With an empty mmcv first on the path that has, or lacks, its own `_ext`."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    if compiled:
        (tmp_path / "mmcv/_ext.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    compat.ops.install()
    installed = importlib.import_module("mmcv._ext")
    assert hasattr(installed, "nms") != compiled
    for name in ("mmcv", "mmcv._ext"):  # monkeypatch restores what was there before
        monkeypatch.delitem(sys.modules, name)
