"""The checks of the installed packages: each finding is one line that names it and its fix."""

import importlib.machinery
import subprocess
import sys
import time
import warnings

import pytest

from ropevit_mmdet.compat import StackError, checks

GOOD = {
    "torch": "2.15.0+cpu",
    "torchvision": "0.30.0+cpu",
    "mmdet": "3.3.0",
    "mmcv-lite": "2.1.0",
    "mmengine": "0.10.7",
}


def message_of(check, *arguments):
    """The one line that a check fails with."""
    with pytest.raises(StackError) as caught:
        check(*arguments)
    assert isinstance(caught.value, ImportError)
    assert "\n" not in str(caught.value) and "pip " in str(caught.value)
    assert caught.value.code  # a heading in docs/troubleshooting.md, see test_doctor.py
    return str(caught.value)


def run_all(installed):
    """The checks of versions but for what torchvision asks for: GOOD's is made up."""
    for check in checks.distribution_checks(installed):
        if check.func is not checks.check_torchvision:
            check()


def test_this_environment_passes_quickly():
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.check_distributions(checks.installed_versions())
    assert time.perf_counter() - start < 0.1


def test_installed_versions_reads_directory_names(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (
        first / "torch-2.15.0+cpu.dist-info",
        first / "onedl_mmcv_cu128_torch2_8-2.3.1.dist-info",
        first / "MMEngine-0.10.7-py3.11.egg-info",
        first / "mmdet.egg-info",
        first / "torch",
        second / "torch-2.6.0.dist-info",
    ):
        directory.mkdir(parents=True)
    found = checks.installed_versions([str(first), str(second), str(tmp_path / "no.zip")])
    assert found == {
        "torch": "2.15.0+cpu",
        "onedl-mmcv-cu128-torch2-8": "2.3.1",
        "mmengine": "0.10.7",
        "mmdet": "",
    }


def test_the_installed_versions_are_those_of_the_metadata():
    from importlib.metadata import version

    found = checks.installed_versions()
    for name in ("torch", "torchvision", "mmdet", "mmengine", "numpy"):
        assert found[name] == version(name)


@pytest.mark.parametrize("version", ["2.7.0", "2.7", "2.10.0a0+git12", "2.15.0+cu130", "3.0", ""])
def test_torch_is_new_enough(version):
    checks.check_torch(GOOD | {"torch": version})


@pytest.mark.parametrize("version", ["2.6.0+cu124", "1.13.1", "2.6.99"])
def test_torch_is_too_old(version):
    text = message_of(checks.check_torch, GOOD | {"torch": version})
    assert version in text and "pip install -U torch torchvision" in text


@pytest.mark.parametrize("requirement", ["torch==2.15.0", "torch (==2.15.0)", "torch (>=2.14.0)"])
def test_torchvision_matches(requirement):
    checks.check_torchvision(GOOD, ["numpy", requirement, "pillow>=5.3"])


@pytest.mark.parametrize(
    ("requirement", "torch"),
    [
        ("torch==2.10.0", "2.15.0"),
        ("torch (==2.15.0)", "2.10.0+cpu"),
        ("torch (>=2.14.0)", "2.13.1"),
    ],
)
def test_torchvision_does_not_match(requirement, torch):
    text = message_of(checks.check_torchvision, GOOD | {"torch": torch}, ["numpy", requirement])
    assert f"torch {torch}" in text and "0.30.0" in text
    assert f"torchvision torch=={torch.removesuffix('+cpu')}" in text


@pytest.mark.parametrize(
    "doubled",
    [
        {"mmcv": "2.1.0"},
        {"onedl-mmdetection": "3.5.1"},
        {"onedl-mmcv-cu128-torch2-8": "2.3.1"},
        {"mmengine-lite": "0.10.7"},
    ],
)
def test_two_distributions_of_one_package(doubled):
    text = message_of(run_all, GOOD | doubled)
    (name,) = doubled
    uninstalled = text.partition("pip uninstall -y ")[2].partition(" && ")[0].split()
    assert name in uninstalled and len(uninstalled) == 2


def test_mixed_families_are_a_warning():
    mixed = {**GOOD, "onedl-mmengine": "0.10.12"}
    del mixed["mmengine"]
    with pytest.warns(UserWarning, match="onedl-mmengine and mmdet, mmcv-lite"):
        checks.check_one_family(mixed)


@pytest.mark.parametrize("suffix", ["", "-cu128-torch2-8"])
def test_one_family_is_fine(suffix):
    fork = {
        "onedl-mmdetection": "3.5.1",
        f"onedl-mmcv{suffix}": "2.3.1",
        "onedl-mmengine": "0.10.12",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family in (GOOD, fork):
            run_all(family)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"mmcv-lite": "2.2.0"}, ["mmdet 3.3.0", "mmcv-lite 2.2.0", "< 2.2.0", "mmcv-lite==2.1.0"]),
        (
            {"mmcv-lite": "1.7.2"},
            ["mmdet 3.3.0", "mmcv-lite 1.7.2", ">= 2.0.0", "mmcv-lite==2.1.0"],
        ),
        ({"mmengine": "0.7.0"}, ["mmdet 3.3.0", "mmengine 0.7.0", "mmengine==0.10.7"]),
        ({"mmengine": "1.0.0"}, ["mmdet 3.3.0", "mmengine 1.0.0", "mmengine==0.10.7"]),
        ({"mmdet": "2.28.2"}, ["mmdet 2.28.2", "mmdet==3.3.0"]),
    ],
)
def test_mm_versions_that_refuse_each_other(installed, words):
    text = message_of(run_all, GOOD | installed)
    assert all(word in text for word in words), text


def test_a_directory_that_pip_left_behind_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "_ext.py").touch()
    left = importlib.machinery.PathFinder.find_spec("mmcv", [str(tmp_path)])
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: left)
    others = {name: version for name, version in GOOD.items() if name != "mmcv-lite"}
    assert "mmcv is not installed" in message_of(checks.check_mm_version, others, "mmcv")


@pytest.mark.parametrize("package", ["torch", "torchvision", "mmdet", "mmcv", "mmengine"])
def test_a_package_is_missing(package, monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    others = {name: v for name, v in GOOD.items() if name.removesuffix("-lite") != package}
    text = message_of(run_all, others)
    assert f"{package} is not installed" in text and "pip install" in text


FAKES = {
    "import_cv2": (
        {"cv2": "raise ImportError('libGL.so.1: cannot open shared object file: No such file')"},
        ["libGL.so.1", "pip uninstall -y opencv-python", "pip install opencv-python-headless"],
    ),
    "import_torchvision": (
        {
            "torch": "__version__ = '2.15.0+cpu'",
            "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
        },
        ["operator torchvision::nms does not exist", "torch 2.15.0", "torchvision torch==2.15.0"],
    ),
    "import_compiled_ops": (
        {"mmcv": "", "mmcv/_ext": "raise ImportError('_ext.so: undefined symbol: _ZN3c10')"},
        ["undefined symbol: _ZN3c10", "pip uninstall -y mmcv && pip install mmcv-lite==2.1.0"],
    ),
    "import_mmdet": (
        {
            "mmcv": "__version__ = '2.2.0'",
            "mmengine": "__version__ = '0.10.7'",
            "mmdet": "assert False, 'MMCV==2.2.0 is used but incompatible.'",
        },
        ["mmcv 2.2.0", "mmengine 0.10.7", "MMCV==2.2.0 is used", "mmcv-lite==2.1.0"],
    ),
}


@pytest.mark.parametrize("check", FAKES)
def test_imports_that_fail(check, tmp_path):
    """In a process of its own, where made-up packages hide the installed ones."""
    sources, words = FAKES[check]
    for module, source in sources.items():
        directory = tmp_path / module
        directory.mkdir()
        (directory / "__init__.py").write_text(source)
    program = f"""
import importlib.util, sys
sys.path.insert(0, {str(tmp_path)!r})
spec = importlib.util.spec_from_file_location("checks", {checks.__file__!r})
checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checks)
try:
    checks.{check}()
except checks.StackError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = result.stdout.splitlines() or [result.stderr]
    assert all(word in line for word in words), line


def test_other_import_errors_are_left_alone(tmp_path, monkeypatch):
    """A package that cv2 itself misses is not cv2's libGL, and keeps its own message."""
    (tmp_path / "cv2.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        checks.import_cv2()


def test_torchvision_without_cuda_beside_a_gpu_build(monkeypatch):
    import torch
    import torchvision

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torchvision.version, "cuda", None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks.import_torchvision()  # no GPU to run on: nothing is wrong
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "was built without CUDA" in message_of(checks.import_torchvision)
