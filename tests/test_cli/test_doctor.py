"""`ropevit doctor`: findings about versions, imports and the machine, each with a fix."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ropevit_cli import _environment
from ropevit_cli._environment import (
    PACKAGES,
    failing_import,
    gpu_findings,
    import_findings,
    packages_to_install,
    shared_memory_findings,
    this_machine,
    version_findings,
)
from tests.commands import ropevit

ROOT = Path(__file__).parents[2]
OPENMMLAB = {"torch": "2.15.0", "mmdet": "3.3.0", "mmcv-lite": "2.1.0", "mmengine": "0.10.7"}
ONEDL = {
    "torch": "2.10.0a0+git12",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmcv-cu128-torch2-8": "2.3.6",
    "onedl-mmengine": "0.10.12",
    "opencv-python": "5.0.0.93+headless",  # of tools/bootstrap.py, without files
    "opencv-python-headless": "5.0.0.93",
}


def test_this_environment_is_healthy(capsys):
    assert ropevit("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    for module in ("torch", "torchvision", "numpy", "mmdet", "mmengine"):
        (name,) = set(importlib.metadata.packages_distributions()[module])
        assert report["versions"][name] == importlib.metadata.version(name)


def test_without_any_package():
    """`-S` hides the installed packages; every fix is printed once."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ropevit_cli.main import main\n"
    argv = [sys.executable, "-I", "-S", "-c", f"{program}sys.exit(main(['doctor']))"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1 and not done.stderr, done.stderr
    findings = [line for line in done.stdout.splitlines() if line.startswith("  FAIL")]
    assert len(set(findings)) == len(findings) == 8
    for fix in ("torch torchvision", "mmdet==3.3.0", "mmcv-lite==2.1.0", "numpy"):
        assert any(line.endswith(f"pip install {fix}") for line in findings)
    assert "see docs/troubleshooting.md#package-missing" in done.stdout


@pytest.mark.parametrize("installed", [OPENMMLAB, ONEDL, {}])
def test_families_that_work(installed):
    assert not list(version_findings(installed))
    is_fork = installed == ONEDL
    packages = packages_to_install(installed)
    assert packages["mmdet"] == ("onedl-mmdetection==3.5.1" if is_fork else "mmdet==3.3.0")
    assert packages.keys() == PACKAGES.keys() and packages["numpy"] == "numpy"


@pytest.mark.parametrize(
    ("changes", "level", "code", "words"),
    [
        ({"torch": "2.9.1+cu128"}, "FAIL", "wrong-version", "torch 2.9.1+cu128 does not work, exp"),
        ({"mmdet": "2.28.2"}, "FAIL", "wrong-version", "pip install -U mmdet==3.3.0"),
        ({"mmcv-lite": "2.2.0"}, "FAIL", "wrong-version", "< 2.2: pip install -U mmcv-lite==2.1.0"),
        ({"mmcv": "2.1.0"}, "FAIL", "package-twice", "pip uninstall -y mmcv mmcv-lite && pip ins"),
        ({"opencv-python": "5", "opencv-python-headless": "5"}, "WARN", "package-twice", "'cv2'"),
    ],
)
def test_versions_that_do_not_work(changes, level, code, words):
    (finding,) = version_findings(OPENMMLAB | changes)
    assert finding[:2] == (code, level) and words in finding.text


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ends its process by SIGSEGV"),
        ("import os; os._exit(3)", "ends its process with status 3"),
        ("raise OSError('lib.so.99: cannot open\\nand more')", "OSError: lib.so.99: cannot open"),
        ("", ""),
    ],
)
def test_the_import_that_fails_is_named(tmp_path, monkeypatch, source, error):
    (tmp_path / "good.py").write_text("print('output')")
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert failing_import(["good", "bad"]) == ("bad", error)


@pytest.mark.parametrize(
    ("module", "error", "code", "fix"),
    [
        ("cv2", "ImportError: libGL.so.1: cannot open", "cv2-library", "opencv-python-headless"),
        ("torchvision", "torchvision::nms does not exist", "torchvision-mismatch", "torch torchv"),
        ("ropevit_mmdet", "_ext.so: undefined symbol: _ZN3c10", "compiled-ops-broken", "mmcv=="),
        ("mmdet", "MMCV==2.2.0 is used but incompatible.", "wrong-version", "install onedl-mmcv=="),
        ("mmdet", "No module named 'mmcv.ops'", "package-missing", "pip install onedl-mmcv=="),
        ("torch", "ends its process by SIGILL", "import-crashes", "-reinstall torch torchvision"),
        ("torch", "OSError: libcudart.so.99: cannot open", "import-fails", "--force-reinstall tor"),
    ],
)
def test_import_errors(module, error, code, fix):
    (finding,) = import_findings(module, error, packages_to_install(ONEDL))
    assert finding.code == code and fix in finding.text


@pytest.mark.parametrize(
    ("program", "codes"),
    [
        ("pass", []),
        ("raise RuntimeError('no kernel image')", ["gpu-not-usable"]),
        ("raise TypeError(\"Could not run 'torchvision::nms'\")", ["torchvision-mismatch"]),
    ],
)
def test_gpu_findings(program, codes, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA X, 81559 MiB, 570.1'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(_environment, "GPU_PROGRAM", program)
    assert [one.code for one in gpu_findings(this_machine()["gpus"])] == codes
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert this_machine()["gpus"] == [] == list(gpu_findings([]))


def test_shared_memory_finding():
    (finding,) = shared_memory_findings(64 * 2**20)
    assert finding.code == "shared-memory" and "64 MiB" in finding.text


def test_docs_explain_every_code():
    source = Path(_environment.__file__).read_text(encoding="utf-8")
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    docs = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### (.+)$", docs, re.MULTILINE))
    assert len(headings) == 10 and headings <= strings
