"""The doctor: every finding is found and has its place in the docs, crashes are not suffered."""

import ast
import importlib.machinery
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ropevit_mmdet.compat import checks, doctor, machine, ops, ops_file, probes
from tests.processes import ROOT, run_python

TOOL = ROOT / "tools" / "doctor.py"
STACK = ROOT / "ropevit_mmdet" / "stack"
DOCS = ROOT / "docs" / "troubleshooting.md"
HERE = machine.Machine("3.11.7", "python", "Linux", 2, 2**34, 2**34, ())
GPU = machine.Gpu("NVIDIA X", 81559, "570.1")


def codes_in(file):
    """The codes of all StackError, StackWarning, Finding and probe outcomes that a file makes."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = getattr(node.func, "id", None) or node.func.attr
            places = {"StackError": 1, "StackWarning": 1, "Finding": 0}
            if name in places:
                yield (
                    node.lineno,
                    node.args[places[name]] if len(node.args) > places[name] else None,
                )
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and key.value == "code":
                    yield node.lineno, value


def test_each_finding_has_its_heading_in_the_docs():
    found = set()
    for name in ("checks", "doctor", "probes"):
        for line, code in codes_in(STACK / f"{name}.py"):
            assert code is not None, f"{name}.py, line {line}: no code"
            if isinstance(code, ast.Constant):
                found.add(code.value)
            else:  # handed on from a StackError
                assert "code" in ast.unparse(code), f"{name}.py, line {line}"
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    headings = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert found == headings and len(found) > 15


@pytest.fixture(scope="module")
def healthy():
    done = run_python(TOOL, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_this_environment_is_healthy(healthy):
    assert healthy["healthy"] and not [f for f in healthy["findings"] if f["level"] == "FAIL"]
    for name in ("torch", "torchvision", "numpy", "mmdet", "mmengine"):
        assert healthy["versions"][name] == importlib.metadata.version(name)
    assert "ropevit-mmdet" in healthy["versions"]
    assert healthy["imports"].keys() == probes.NEEDS.keys()
    assert all("facts" in outcome for outcome in healthy["imports"].values())


def test_ops_that_work_and_that_raise(healthy):
    facts = healthy["imports"]["mmcv._ext"]["facts"]
    module = ops.build_module()
    for name in facts["real"]:
        with pytest.raises((TypeError, AssertionError)):
            getattr(module, name)(no_such_argument=1)
    for name in facts["unsupported"]:
        with pytest.raises(NotImplementedError):
            getattr(module, name)(no_such_argument=1)
    assert sorted(facts["real"] + facts["unsupported"]) == sorted(ops.EXT_FUNCTIONS)
    assert facts["standin"] and healthy["ops"] == {"source": "hook", "file": None}


def test_without_any_package():
    """-S: Python without its site-packages; every fix is named, none of them twice."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", TOOL], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 1 and not done.stderr, done.stderr
    findings = [line for line in done.stdout.splitlines() if line.startswith("  FAIL")]
    assert len(set(findings)) == len(findings) == 8
    for fix in ("-e ", "torch torchvision", "mmdet==3.3.0", "mmcv-lite==2.1.0", "numpy"):
        assert any(f"pip install {fix}" in line for line in findings)
    assert "All is well" not in done.stdout
    assert "more: docs/troubleshooting.md#torch-missing" in done.stdout


FAKES = {
    "numpy": "__version__ = '9.9'",
    "cv2": "import os; print('about to die'); os.kill(os.getpid(), 11)",
    "pycocotools": "import no_such_package",
    "torch": "raise OSError('libcudart.so.99: cannot open\\nand more')",
    "mmdet": "",
}


def fake_packages(directory, monkeypatch, **sources):
    for name, source in sources.items():
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def test_imports_that_crash_are_reported(tmp_path, monkeypatch):
    fake_packages(tmp_path, monkeypatch, **FAKES)
    outcomes = probes.probe()
    assert list(outcomes) == list(probes.NEEDS)
    assert outcomes["numpy"] == {"facts": {"version": "9.9"}}
    assert outcomes["cv2"]["code"] == "import-crashes"
    assert "import cv2 ends the whole process by SIGSEGV" in outcomes["cv2"]["error"]
    assert outcomes["pycocotools"]["code"] == "package-missing"
    assert "pip install no_such_package" in outcomes["pycocotools"]["error"]
    assert outcomes["torch"]["code"] == "import-fails"
    assert outcomes["torch"]["error"].startswith(
        "import torch fails, OSError: libcudart.so.99: cannot open: pip install --force-reinstall "
    )
    assert outcomes["torchvision"] == {"skipped": "torch"}
    assert outcomes["mmcv._ext"] == {"skipped": "cv2"}
    assert outcomes["ropevit_mmdet"] == {"skipped": "pycocotools"}


def test_imports_that_exit_or_hang_are_reported(tmp_path, monkeypatch):
    sources = {"numpy": "import os; os._exit(3)", "torch": "import time; time.sleep(60)"}
    fake_packages(tmp_path, monkeypatch, **sources)
    absent = [step for step in probes.NEEDS if step not in sources]
    outcomes = probes.probe(absent, timeout=1.0)
    assert "status 3" in outcomes["numpy"]["error"]
    assert "does not come back within 1 s" in outcomes["torch"]["error"]


def test_the_first_finding_hides_no_other(monkeypatch):
    """Four wrong packages: four findings, where importing the package stops at the first."""
    installed = {"torch": "2.6.0", "torchvision": "0.21.0", "mmdet": "3.3.0", "mmcv-lite": "2.2.0"}
    installed |= {"mmengine": "0.10.7", "onedl-mmengine": "0.10.12", "mmcv": "2.1.0"}
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda name: ["torch==2.15.0"])
    found = [(f.level, f.code) for f in doctor._of_versions(installed)]
    assert found == [
        ("FAIL", "torch-too-old"),
        ("FAIL", "torchvision-mismatch"),
        ("FAIL", "package-twice"),
        ("FAIL", "package-twice"),
        ("WARN", "two-families"),
        ("FAIL", "mm-versions"),
    ]


def test_opencv_twice_but_not_the_empty_one_of_bootstrap():
    headless = {"opencv-python-headless": "5.0.0.93"}
    assert not list(doctor._of_opencv(headless | {"opencv-python": "5.0.0.93+headless"}))
    (finding,) = doctor._of_opencv(headless | {"opencv-python": "5.0.0.93"})
    assert finding.code == "opencv-twice" and finding.level == "WARN"


def test_another_copy_of_the_package(tmp_path, monkeypatch):
    assert not list(doctor._of_this_package())
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "ropevit_mmdet")
    (finding,) = doctor._of_this_package()
    assert finding.code == "another-copy" and str(tmp_path) in finding.text


def torch_facts(**facts):
    return {"torch": {"facts": dict(version="2.15.0", cuda="13.0", reason="", **facts)}}


def test_gpus_that_torch_does_not_use():
    with_gpu = machine.Machine("3.11.7", "python", "Linux", 2, None, None, (GPU,))
    assert not list(doctor._of_machine(HERE, torch_facts(usable_gpus=0)))
    assert not list(doctor._of_machine(with_gpu, torch_facts(usable_gpus=1)))
    assert not list(doctor._of_machine(with_gpu, {"torch": {"error": "x", "code": "y"}}))
    (finding,) = doctor._of_machine(with_gpu, torch_facts(usable_gpus=0))
    assert finding.code == "gpu-not-usable" and "driver 570.1" in finding.text
    facts = torch_facts(usable_gpus=0)
    facts["torch"]["facts"]["cuda"] = None
    (finding,) = doctor._of_machine(with_gpu, facts)
    assert finding.code == "gpu-unused" and "NVIDIA X" in finding.text


def test_small_shared_memory():
    small = machine.Machine("3.11.7", "python", "Linux", 2, None, 64 * 2**20, ())
    (finding,) = doctor._of_machine(small, {})
    assert finding.code == "shared-memory" and "64 MiB" in finding.text


def test_facts_of_the_machine(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA X, 81559, 570.1'\necho 'NVIDIA Y, [N/A], 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    here = machine.this_machine()
    assert here.gpus == (GPU, machine.Gpu("NVIDIA Y", 0, "570.1"))
    assert here.cores == len(os.sched_getaffinity(0)) and here.executable == sys.executable
    assert 2**28 < here.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert machine.this_machine().gpus == ()


def test_the_parts_that_must_run_anywhere_import_the_standard_library_alone():
    for name in ("checks", "doctor", "machine", "ops", "ops_file", "probes", "mmcv_ext"):
        tree = ast.parse((STACK / f"{name}.py").read_text())
        for node in tree.body:  # at import; functions may import more
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_tool_parses_on_a_python_that_is_too_old():
    ast.parse(TOOL.read_text(), feature_version=(3, 6))


@pytest.fixture
def mmcv_copy(tmp_path):
    """A directory to import from, with an mmcv of links to the installed one, but without `_ext`."""
    (installed,) = importlib.util.find_spec("mmcv").submodule_search_locations
    directory = tmp_path / "site" / "mmcv"
    directory.mkdir(parents=True)
    for entry in Path(installed).iterdir():
        if not entry.name.startswith(("_ext", "__pycache__")):
            (directory / entry.name).symlink_to(entry)
    return directory


BARE = """
import sys, torch
from mmcv.ops import nms
assert "ropevit_mmdet" not in sys.modules
boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10.0]])
print(nms(boxes, torch.tensor([0.5, 0.6]), 0.5)[1].tolist())
import ropevit_mmdet
ext = sys.modules["mmcv._ext"]
print(ropevit_mmdet.compat.ops.is_standin(ext), ext.__file__)
"""
FIRST = """
import sys
import ropevit_mmdet
ext = sys.modules["mmcv._ext"]
from ropevit_mmdet.compat import ops
from ropevit_mmdet.compat import ops_boxes
print(ext.nms is ops_boxes.nms, ops.is_standin(ext))
"""


def test_installed_ops_serve_programs_that_know_nothing_of_us(mmcv_copy):
    site, file = mmcv_copy.parent, mmcv_copy / "_ext.py"
    for _ in range(2):  # the second time changes nothing
        done = run_python(TOOL, "--install-ops", path=site)
        assert done.returncode == 0 and str(file) in done.stdout, done.stderr
    done = run_python("-c", BARE, path=site)
    assert done.stdout.split() == ["[1]", "True", str(file)], done.stderr
    done = run_python("-c", FIRST, path=site)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert ops_file.ops_source(mmcv_copy) == ("file", file)
    done = run_python(TOOL, "--uninstall-ops", path=site)
    assert done.returncode == 0 and f"removed {file}" in done.stdout
    assert not file.exists() and not list(mmcv_copy.glob(".*"))
    assert "nothing to take away" in run_python(TOOL, "--uninstall-ops", path=site).stdout


def test_a_compiled_ext_that_comes_later_wins(mmcv_copy):
    ops_file.install_file(mmcv_copy)
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        compiled = mmcv_copy / f"_ext{suffix}"
        compiled.touch()
        spec = importlib.machinery.PathFinder.find_spec("mmcv._ext", [str(mmcv_copy)])
        assert isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)
        assert ops_file.ops_source(mmcv_copy) == ("compiled", compiled)
        with pytest.raises(ops_file.OpsFileError, match="compiled ops"):
            ops_file.install_file(mmcv_copy)
        compiled.unlink()
        importlib.invalidate_caches()
    other = mmcv_copy / "_ext.cpython-38-x86_64-linux-gnu.so"  # of a Python that is not this one
    other.touch()
    with pytest.raises(ops_file.OpsFileError, match="compiled ops"):
        ops_file.install_file(mmcv_copy)


def test_a_file_that_is_not_ours_is_left_alone(mmcv_copy):
    file = mmcv_copy / "_ext.py"
    file.write_text("# mine\n")
    for change in (ops_file.install_file, ops_file.uninstall_file):
        with pytest.raises(ops_file.OpsFileError, match="not written by ropevit_mmdet"):
            change(mmcv_copy)
    assert file.read_text() == "# mine\n"
    (finding,) = doctor._of_ops_file(ops_file.ops_source(mmcv_copy), [])
    assert finding.code == "ops-file-foreign" and str(file) in finding.text


def test_an_older_file_of_ours_is_renewed(mmcv_copy):
    file = mmcv_copy / "_ext.py"
    file.write_text(f"{ops_file.MARKER} an older text\nraise ImportError\n")
    ops_file.install_file(mmcv_copy)
    assert file.read_bytes() == ops_file.TEMPLATE.read_bytes()


def test_a_directory_that_cannot_be_written(mmcv_copy, monkeypatch):
    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ops_file.os, "replace", refuse)
    before = sorted(mmcv_copy.iterdir())
    with pytest.raises(ops_file.OpsFileError, match="Permission denied; run this as the owner"):
        ops_file.install_file(mmcv_copy)
    assert sorted(mmcv_copy.iterdir()) == before


def test_a_disk_that_is_read_only(mmcv_copy, monkeypatch):
    """It refuses even to remove what is not there."""

    def refuse(path, *argv, **settings):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(ops_file.Path, "write_bytes", refuse)
    monkeypatch.setattr(ops_file.Path, "unlink", refuse)
    with pytest.raises(ops_file.OpsFileError, match="Read-only file system; run this as the owner"):
        ops_file.install_file(mmcv_copy)


def test_what_pip_left_of_mmcv_goes_with_the_file(tmp_path):
    directory = tmp_path / "mmcv"
    (directory / "__pycache__").mkdir(parents=True)
    (directory / "_ext.py").write_bytes(ops_file.TEMPLATE.read_bytes())
    with pytest.raises(ops_file.OpsFileError, match="holds no mmcv"):
        ops_file.install_file(directory)
    assert ops_file.uninstall_file(directory) == directory / "_ext.py"
    assert not directory.exists()


def test_the_file_without_the_package_says_so(tmp_path):
    file = tmp_path / "_ext.py"
    file.write_bytes(ops_file.TEMPLATE.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", file], capture_output=True, text=True, cwd=tmp_path
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {file} was written by ropevit_mmdet")
    assert "install ropevit_mmdet again, or delete that file" in last
    (finding,) = doctor._of_ops_file(ops_file.OpsSource("file", file), ["ropevit_mmdet"])
    assert finding.code == "ops-file-orphan" and finding.level == "FAIL"
