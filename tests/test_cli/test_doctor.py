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
    NEEDS,
    import_errors,
    import_findings,
    machine_findings,
    this_machine,
    version_findings,
)
from tests.commands import ropevit

ROOT = Path(__file__).parents[2]
OPENMMLAB = {"torch": "2.15.0", "mmdet": "3.3.0", "mmcv-lite": "2.1.0", "mmengine": "0.10.7"}
FORK = {
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
    assert report["healthy"] and report["imports"] == dict.fromkeys(NEEDS, "")
    for name in ("torch", "torchvision", "numpy", "mmdet", "mmengine"):
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


def codes(findings):
    return [(finding.level, finding.code) for finding in findings]


@pytest.mark.parametrize("installed", [OPENMMLAB, FORK])
def test_versions_that_work(installed):
    assert not list(version_findings(installed))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"torch": "2.9.1+cu128"}, "wrong-version", "torch 2.9.1+cu128 does not work, expected is"),
        ({"mmdet": "2.28.2"}, "wrong-version", "pip install -U mmdet==3.3.0"),
        ({"mmcv-lite": "2.2.0"}, "wrong-version", ">= 2.0, < 2.2: pip install -U mmcv-lite==2.1.0"),
        ({"mmcv": "2.1.0"}, "package-twice", "pip uninstall -y mmcv mmcv-lite && pip install mmcv"),
    ],
)
def test_versions_that_do_not_work(changes, code, words):
    (finding,) = version_findings(OPENMMLAB | changes)
    assert (finding.level, finding.code) == ("FAIL", code) and words in finding.text


def test_warnings_about_versions():
    mixed = {**OPENMMLAB, "onedl-mmcv": "2.3.6"}
    del mixed["mmcv-lite"]
    assert codes(version_findings(mixed)) == [("WARN", "two-families")]
    twice = {"opencv-python": "5.0", "opencv-python-headless": "5.0"}
    assert codes(version_findings(OPENMMLAB | twice)) == [("WARN", "package-twice")]


def test_torchvision_of_another_torch(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch (==2.14.0)"])
    found = codes(version_findings(OPENMMLAB | {"torchvision": "0.30.0"}))
    assert found == [("FAIL", "torchvision-mismatch")]


def test_imports_that_fail_or_crash(tmp_path, monkeypatch):
    packages = {
        "numpy": "print('output')",
        "cv2": "import os; os.kill(os.getpid(), 11)",
        "pycocotools": "import no_such_package",
        "torch": "raise OSError('libcudart.so.99: cannot open\\nand more')",
    }
    for name, source in packages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    errors = import_errors(list(NEEDS))
    assert errors["numpy"] == "" and errors["cv2"] == "ends its process by SIGSEGV"
    assert errors["torchvision"] == "needs torch"
    assert errors["mmdet"] == errors["ropevit_mmdet"] == "needs cv2"
    crash, missing, failure = import_findings(errors)
    assert crash.code == "import-crashes" and "opencv-python-headless" in crash.text
    assert missing.code == "package-missing" and missing.text.endswith("install no_such_package")
    assert failure.code == "import-fails" and failure.text == (
        "import torch fails, OSError: libcudart.so.99: cannot open: "
        "pip install --force-reinstall torch torchvision"
    )


@pytest.mark.parametrize(
    ("module", "error", "code"),
    [
        ("cv2", "ImportError: libGL.so.1: cannot open shared object", "cv2-library"),
        ("torchvision", "RuntimeError: operator torchvision::nms does not exist", None),
        ("ropevit_mmdet", "ImportError: _ext.so: undefined symbol: _ZN3c10", "compiled-ops-broken"),
        ("mmdet", "AssertionError: MMCV==2.2.0 is used but incompatible.", "wrong-version"),
    ],
)
def test_known_import_errors(module, error, code):
    (finding,) = import_findings({module: error})
    assert finding.code == (code or "torchvision-mismatch") and "pip " in finding.text


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", None),
        ("raise RuntimeError('no kernel image')", "gpu-not-usable"),
        ("raise NotImplementedError(\"Could not run 'torchvision::nms'\")", "torchvision-mismatch"),
    ],
)
def test_gpu_findings(program, code, monkeypatch):
    monkeypatch.setattr(_environment, "GPU_PROGRAM", program)
    machine = {"gpus": ["NVIDIA X, 81559 MiB, 570.1"], "shared_memory": 2**34}
    assert [one.code for one in machine_findings(machine, True)] == ([code] if code else [])
    assert not list(machine_findings(machine, False))


def test_shared_memory_finding():
    (finding,) = machine_findings({"gpus": [], "shared_memory": 64 * 2**20}, True)
    assert finding.code == "shared-memory" and "64 MiB" in finding.text


def test_this_machine(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA X, 81559 MiB, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert this_machine()["gpus"] == ["NVIDIA X, 81559 MiB, 570.1"]
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert this_machine()["gpus"] == []


def test_docs_explain_every_code():
    source = Path(_environment.__file__).read_text(encoding="utf-8")
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    docs = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### (.+)$", docs, re.MULTILINE))
    assert len(headings) == 11 and headings <= strings
