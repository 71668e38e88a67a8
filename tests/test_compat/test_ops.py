"""The stand-in for mmcv._ext as a module: names, look-ups, precedence of a compiled one."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ropevit_mmdet import compat

SUPPORTED = {
    *("nms", "softnms", "nms_match", "bbox_overlaps"),
    *("roi_align_forward", "roi_align_backward"),
    *("sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"),
    *("softmax_focal_loss_forward", "softmax_focal_loss_backward"),
    *("deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"),
    *("modulated_deform_conv_forward", "modulated_deform_conv_backward"),
    *("ms_deform_attn_forward", "ms_deform_attn_backward"),
    *("get_compiler_version", "get_compiling_cuda_version"),
}


@pytest.fixture(scope="module")
def standin():
    return compat.ops.build_module()


def names_that_mmcv_asks_for():
    """Every name in a call of load_ext('_ext', [...]) in the installed mmcv's sources."""
    (mmcv_dir,) = importlib.util.find_spec("mmcv").submodule_search_locations
    names = set()
    for source in Path(mmcv_dir, "ops").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load_ext"):
                module, functions = map(ast.literal_eval, node.args)
                assert module == "_ext"
                names.update(functions)
    return names


def test_every_name_that_mmcv_asks_for_is_there(standin):
    assert names_that_mmcv_asks_for() == set(compat.ops.EXT_FUNCTIONS)
    assert len(compat.ops.EXT_FUNCTIONS) == len(set(compat.ops.EXT_FUNCTIONS)) == 112
    assert all(callable(getattr(standin, name)) for name in compat.ops.EXT_FUNCTIONS)


def test_unsupported_names_raise_when_called_and_say_so(standin):
    unsupported = sorted(set(compat.ops.EXT_FUNCTIONS) - SUPPORTED)
    assert len(unsupported) == 112 - len(SUPPORTED)
    for name in unsupported:
        with pytest.raises(NotImplementedError, match=rf"'{name}'.*compiled mmcv"):
            getattr(standin, name)(1, keyword=2)


def test_supported_names_are_implemented(standin):
    for name in SUPPORTED:
        assert getattr(standin, name).__name__ != "raise_unsupported"
    assert set(compat.ops.EXT_FUNCTIONS) >= SUPPORTED
    assert "not compiled" in standin.get_compiler_version()
    assert "not compiled" in standin.get_compiling_cuda_version()


def test_module_looks_like_an_imported_one(standin):
    assert standin.__spec__.name == standin.__name__ == "mmcv._ext"
    assert standin.__spec__.loader is not None
    assert compat.ops.is_standin(standin)
    for name in ("__path__", "__file__", "__wrapped__", "no_such_op"):
        with pytest.raises(AttributeError):
            getattr(standin, name)


def test_mmcv_finds_its_ops():
    from mmcv.utils.ext_loader import check_ops_exist

    assert check_ops_exist()
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert importlib.util.find_spec("mmcv._extension") is None


def test_install_and_prepare_are_idempotent():
    before = list(sys.meta_path)
    compat.ops.install()
    compat.prepare()
    assert sys.meta_path == before
    assert sum(isinstance(finder, compat.ops.StandInFinder) for finder in before) == 1


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compiled_ext_wins(tmp_path, compiled):
    """In a process of its own, with an empty mmcv that has, or has not, an `_ext` of its own."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    if compiled:
        (tmp_path / "mmcv/_ext.py").touch()
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("ops", {compat.ops.__file__!r})
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
sys.path.insert(0, {str(tmp_path)!r})
ops.install()
found = importlib.util.find_spec("mmcv._ext")
assert "torch" not in sys.modules
print(isinstance(found.loader, ops.StandInFinder))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == str(not compiled), result.stderr
