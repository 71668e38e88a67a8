"""The set-up script: what it checks, when it reuses, repairs or remakes .venv; installs nothing."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "bootstrap.py"
spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)


class Recorded(bootstrap.Environment):
    """An environment that notes its steps and takes none; one that has `broken` in it fails."""

    def __init__(self, root):
        super().__init__(str(root))
        self.steps = []
        self.broken = None

    def run(self, step, command):
        self.steps.append(command)
        if self.broken is not None and self.broken in command:
            raise bootstrap.BootstrapError(f"the step '{step}' failed")
        if "venv" in command:
            os.makedirs(os.path.dirname(self.python))
            Path(self.python).touch()

    def did(self):
        """The steps since the last call, in short."""
        steps, self.steps = self.steps, []
        names = {"venv": "create", "-e": "install", "-c": "try"}
        return [
            next(short for word, short in names.items() if word in step)
            for step in steps
            if "setuptools" not in step
        ]


@pytest.fixture
def project(tmp_path):
    """A project in a directory with a space in its name."""
    root = tmp_path / "my project"
    (root / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "requirements" / "constraints.txt", root / "requirements")
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def test_environment_is_made_once_and_grows(project):
    environment = Recorded(project)
    python = environment.ensure([])
    assert python == str(project / ".venv" / "bin" / "python")
    assert environment.did() == ["create", "install", "try"]
    environment.ensure([])
    assert environment.did() == []
    environment.ensure(["test"])
    install = [step for step in environment.steps if "-e" in step]
    assert install[0][-1] == f"{project}[test]"
    assert environment.did() == ["install", "try"]
    environment.ensure([])  # less than is there
    assert environment.did() == []


@pytest.mark.parametrize("name", ["requirements/constraints.txt", "pyproject.toml"])
def test_changed_files_install_again(project, name):
    environment = Recorded(project)
    environment.ensure(["test"])
    environment.did()
    with open(project / name, "a") as file:
        file.write("# changed\n")
    environment.ensure([])
    assert any(f"{project}[test]" in step for step in environment.steps)
    assert environment.did() == ["install", "try"]


@pytest.mark.parametrize("broken", ["venv", "-e", bootstrap.FIRST_IMPORTS])
def test_interrupted_set_up_starts_anew(project, broken):
    environment = Recorded(project)
    environment.broken = broken
    with pytest.raises(bootstrap.BootstrapError):
        environment.ensure([])
    environment.did()
    leftover = project / ".venv" / "leftover"
    leftover.touch()
    environment.broken = None
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    assert not leftover.exists()


def test_interrupted_update_starts_anew(project):
    environment = Recorded(project)
    environment.ensure([])
    environment.did()
    environment.broken = "-e"
    with pytest.raises(bootstrap.BootstrapError):
        environment.ensure(["test"])
    environment.did()
    environment.broken = None
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]


def test_moved_project_other_python_and_cut_record_start_anew(project):
    Recorded(project).ensure([])
    moved = project.rename(project.with_name("moved"))
    environment = Recorded(moved)
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    record = Path(environment.record)
    record.write_text(json.dumps({**json.loads(record.read_text()), "python": "3.9.1"}))
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    record.write_text(record.read_text()[:20])
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    Path(environment.python).unlink()  # as after an upgrade of the system's Python
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]


def test_foreign_environment_is_left_alone(project):
    (project / ".venv").mkdir()
    precious = project / ".venv" / "precious"
    precious.touch()
    with pytest.raises(bootstrap.BootstrapError, match="was not made by this script"):
        Recorded(project).ensure([])
    assert precious.exists()


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 18)])
def test_old_python_is_one_line(version):
    with pytest.raises(bootstrap.BootstrapError) as error:
        bootstrap.check_interpreter(version)
    message = str(error.value)
    assert message.startswith(f"needs Python 3.10 or newer, this is {version[0]}.{version[1]} ")
    assert "\n" not in message


def test_script_parses_on_old_python():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))  # f-strings, walrus ... are refused
    assert '"""' in SCRIPT.read_text() and " from None" not in SCRIPT.read_text()


def test_missing_venv_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # as on Debian without python3-venv
    assert bootstrap.main(["test"]) == 1
    error = capsys.readouterr().err
    assert "lacks its module 'ensurepip'" in error and error.count("\n") == 1
    assert f"apt install python3.{sys.version_info[1]}-venv" in error


def test_failing_step_is_named(project, capfd):
    environment = bootstrap.Environment(str(project))
    os.mkdir(environment.directory)
    code = "import sys; print('ERROR: no such thing'); print('more'); sys.exit(7)"
    with pytest.raises(bootstrap.BootstrapError, match=r"'doing it' failed with status 7.*log"):
        environment.run("doing it", [sys.executable, "-c", code])
    assert capfd.readouterr().err == "ERROR: no such thing\n"
    assert "more" in (project / ".venv" / "bootstrap.log").read_text()


def test_status_and_arguments_pass_through(monkeypatch):
    monkeypatch.setattr(bootstrap.Environment, "ensure", lambda self, extras: sys.executable)
    calls = []
    statuses = iter([0, 3, 4])
    monkeypatch.setattr(bootstrap, "call", lambda command: calls.append(command) or next(statuses))
    assert bootstrap.main(["test", "-k", "neck"]) == 3
    assert calls[2][1:] == ["-m", "pytest", "-q", "--durations=10", "-k", "neck"]
    statuses = iter([5])
    assert bootstrap.main(["demo", "--seed", "1"]) == 5
    assert calls[3][1:] == [os.path.join("tools", "demo.py"), "--seed", "1"]


def test_runs_from_elsewhere_and_shows_help(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "bootstrap.py demo" in done.stdout
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "dmeo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "bootstrap.py demo" in done.stderr


def test_opencv_alias_is_an_empty_wheel_that_needs_the_headless_package(tmp_path):
    version = bootstrap.pinned_version(
        ROOT / "requirements" / "constraints.txt", "opencv-python-headless"
    )
    path = bootstrap.write_opencv_alias(str(tmp_path), version)
    with zipfile.ZipFile(path) as wheel:
        members = wheel.namelist()
        metadata = wheel.read(members[0]).decode()
    assert all(".dist-info/" in member for member in members)
    assert f"Requires-Dist: opencv-python-headless=={version}\n" in metadata
    assert f"Version: {version}+headless\n" in metadata


def test_constraints_pin_every_direct_requirement():
    text = (ROOT / "requirements" / "constraints.txt").read_text()
    for name in ("torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "numpy", "pillow",
                 "matplotlib", "pycocotools", "tqdm", "pytest", "ruff", "birder", "hypothesis",
                 "safetensors", "setuptools", "pip", "onnx", "onnxruntime",
                 "onnxscript"):  # fmt: skip
        assert f"\n{name}==" in text, name
    assert "nvidia" not in text and "triton" not in text
