"""The set-up script: its checks, when it reuses, repairs or recreates .venv; installs nothing."""

import ast
import importlib.util
import json
import os
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "bootstrap.py"
spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)


class Recorded(bootstrap.Environment):
    """An environment that records its steps and skips them; one with `broken` in it fails."""

    def __init__(self, root):
        super().__init__(str(root))
        self.steps = []
        self.broken = None

    def run(self, step, command):
        self.steps.append(command)
        Path(self.log).touch()
        if self.broken is not None and self.broken in command:
            raise bootstrap.BootstrapError(f"the step '{step}' failed")
        if "venv" in command:
            Path(self.python).parent.mkdir()
            Path(self.python).touch()

    def did(self):
        """Short names of the steps since the last call."""
        steps, self.steps = self.steps, []
        names = {"venv": "create", "-e": "install", "-c": "try"}
        return [
            next(short for word, short in names.items() if word in step)
            for step in steps
            if "setuptools" not in step
        ]


@pytest.fixture
def project(tmp_path):
    """A project whose path has a space."""
    root = tmp_path / "my project"
    (root / "requirements").mkdir(parents=True)
    for name in ("requirements/constraints.txt", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, root / name)
    return root


def test_environment_is_made_once_grows_and_is_updated(project):
    environment = Recorded(project)
    python = environment.ensure(["mm"])
    assert python == str(project / ".venv" / "bin" / "python")
    assert environment.did() == ["create", "install", "try"]
    environment.ensure([])
    assert environment.did() == []
    environment.ensure(["mm", "test"])
    assert [step[-1] for step in environment.steps if "-e" in step] == [f"{project}[mm,test]"]
    assert environment.did() == ["install", "try"]
    with open(project / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    environment.ensure([])
    assert any(f"{project}[mm,test]" in step for step in environment.steps)
    assert environment.did() == ["install", "try"]


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("broken", ["venv", "-e", bootstrap.FIRST_IMPORTS])
def test_interrupted_set_up_starts_again(project, broken, is_update):
    environment = Recorded(project)
    if is_update:
        environment.ensure([])
        Path(environment.python).unlink()
    environment.broken = broken
    with pytest.raises(bootstrap.BootstrapError):
        environment.ensure(["test"])
    environment.did()
    leftover = project / ".venv" / "leftover"
    leftover.touch()
    environment.broken = None
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    assert not leftover.exists()


def test_moved_project_and_other_python_start_again(project):
    Recorded(project).ensure([])
    environment = Recorded(project.rename(project.with_name("moved")))
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]
    record = Path(environment.record)
    record.write_text(json.dumps({**json.loads(record.read_text()), "python": "3.9.1"}))
    environment.ensure([])
    assert environment.did() == ["create", "install", "try"]


def test_foreign_environment_is_kept(project):
    precious = project / ".venv" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(bootstrap.BootstrapError, match="was not made by this script"):
        Recorded(project).ensure([])
    assert precious.exists()


def test_old_python_and_missing_venv(monkeypatch):
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))  # f-strings, walrus ... are refused
    with pytest.raises(bootstrap.BootstrapError, match=r"needs Python 3.11 or newer, this is 3.10"):
        bootstrap.check_interpreter((3, 10, 18))
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # as on Debian without python3-venv
    with pytest.raises(bootstrap.BootstrapError, match=r"apt install python3.12-venv"):
        bootstrap.check_interpreter((3, 12, 1))


def test_failing_step_is_named(project, capfd):
    environment = bootstrap.Environment(str(project))
    os.mkdir(environment.directory)
    code = "import sys; print('ERROR: no such thing'); print('more'); sys.exit(7)"
    with pytest.raises(bootstrap.BootstrapError, match=r"'doing it' failed with status 7.*log"):
        environment.run("doing it", [sys.executable, "-c", code])
    assert capfd.readouterr().err == "ERROR: no such thing\n"
    assert "more" in (project / ".venv" / "bootstrap.log").read_text()


def test_status_and_arguments_pass_through(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.Environment, "ensure", lambda self, extras: sys.executable)
    calls, statuses = [], iter([0, 3, 0, 4, 5])
    call = lambda command, **_: calls.append(command) or next(statuses)  # noqa: E731
    monkeypatch.setattr(bootstrap, "call", call)
    assert bootstrap.main(["test", "-k", "neck"]) == 3
    assert calls[3][1:4] == ["-m", "pytest", "-q"] and calls[3][-2:] == ["-k", "neck"]
    assert bootstrap.main(["demo", "--seed", "1"]) == 5
    assert calls[4][1:] == [os.path.join("examples", "demo.py"), "--seed", "1"]
    assert bootstrap.main(["dmeo"]) == 2 and "bootstrap.py demo" in capsys.readouterr().err


def test_opencv_alias_is_an_empty_wheel_that_needs_the_headless_package(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.4.6\nopencv-python-headless==5.0.0.93\n")
    with zipfile.ZipFile(bootstrap.write_opencv_alias(str(tmp_path), constraints)) as wheel:
        members = wheel.namelist()
        metadata = wheel.read(members[0]).decode()
    assert all(".dist-info/" in member for member in members)
    assert "Requires-Dist: opencv-python-headless==5.0.0.93\n" in metadata
    assert "Version: 5.0.0.93+headless\n" in metadata


def test_constraints_pin_every_requirement():
    pins = {line.split("==")[0] for line in (ROOT / "requirements/constraints.txt").open()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {"pip", "setuptools", *project["dependencies"]}
    needed.update(*(extras[name] for name in ("mm", "test", "export", "tensorboard", "docs")))
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in needed}
    assert names - {"ropevit-mmdet"} <= pins
    assert not any(name.startswith(("nvidia", "triton")) for name in pins)
