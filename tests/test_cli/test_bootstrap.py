"""The set-up script: its checks, when it reuses, repairs or recreates .venv; installs nothing."""

import ast
import importlib.util
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

    def __init__(self, root, stack="mm", broken=None):
        super().__init__(str(root), stack)
        self.steps, self.broken = [], broken

    def run(self, step, command):
        Path(self.log).touch()
        if self.broken is not None and self.broken in command:  # a step that fails is named
            super().run(step, [sys.executable, "-c", "print('ERROR: x'); raise SystemExit(7)"])
        if "venv" in command:
            Path(self.python).parent.mkdir()
            Path(self.python).touch()
            self.steps.append("venv")
        elif "-e" in command:
            self.steps.append(command[-1].removeprefix(self.root))

    def ensured(self, *extras):
        """The steps that `ensure` takes: a new environment, and the extras that it installs."""
        self.steps.clear()
        assert self.ensure(extras) == f"{self.directory}/bin/python"
        return self.steps


CREATED = ["venv", "[mm]"]


@pytest.fixture
def project(tmp_path):
    """A project whose path has a space."""
    root = tmp_path / "my project"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, root / name)
    return root


def test_environment_is_made_once_grows_and_is_updated(project):
    environment = Recorded(project)
    assert environment.ensured() == CREATED
    assert environment.ensured("mm") == []
    assert environment.ensured("test") == ["[mm,test]"]
    assert environment.ensured() == []
    with open(project / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    assert environment.ensured() == ["[mm,test]"]
    fork = Recorded(project, "onedl")
    assert fork.ensured("test") == ["venv", "[onedl,test]"]
    assert fork.directory == str(project / ".venv-onedl")
    assert fork.constraints.endswith("constraints-onedl.txt")
    moved = Recorded(project.rename(project.with_name("moved")))
    assert moved.ensured() == CREATED
    Path(moved.record).write_text('{"place": [')  # cut off
    assert moved.ensured() == CREATED


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("broken", ["venv", "-e", bootstrap.FIRST_IMPORTS])
def test_interrupted_set_up_starts_again(project, broken, is_update, capfd):
    environment = Recorded(project)
    if is_update:
        environment.ensure([])
        Path(environment.python).unlink()
    with pytest.raises(bootstrap.BootstrapError, match="failed with status 7.*bootstrap.log"):
        Recorded(project, broken=broken).ensure(["test"])
    assert capfd.readouterr().err == "ERROR: x\n"
    leftover = project / ".venv" / "leftover"
    leftover.touch()
    assert environment.ensured() == CREATED and not leftover.exists()


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


def test_status_and_arguments_pass_through(monkeypatch, capsys):
    stacks, calls, statuses = [], [], iter([0, 3, 0, 4, 5])
    ensure = lambda self, extras: stacks.append(self.stack) or sys.executable  # noqa: E731
    call = lambda command, **_: calls.append(command) or next(statuses)  # noqa: E731
    monkeypatch.setattr(bootstrap.Environment, "ensure", ensure)
    monkeypatch.setattr(bootstrap, "call", call)
    monkeypatch.delenv("MM", raising=False)
    assert bootstrap.main(["test", "-k", "neck"]) == 3
    assert calls[3][1:4] == ["-m", "pytest", "-q"] and calls[3][-2:] == ["-k", "neck"]
    monkeypatch.setenv("MM", "onedl")
    assert bootstrap.main(["demo", "--seed", "1"]) == 5 and stacks == ["mm", "onedl"]
    assert calls[4][1:] == [os.path.join("examples", "demo.py"), "--seed", "1"]
    assert bootstrap.main(["dmeo"]) == 2 and "bootstrap.py demo" in capsys.readouterr().err


def test_opencv_alias_is_an_empty_wheel_that_needs_the_headless_package(tmp_path):
    constraints = ROOT / "requirements" / "constraints.txt"
    with zipfile.ZipFile(bootstrap.write_opencv_alias(str(tmp_path), constraints)) as wheel:
        members = wheel.namelist()
        metadata = wheel.read(members[0]).decode()
    version = re.search("opencv-python-headless==(.+)", constraints.read_text())[1]
    assert all(".dist-info/" in member for member in members)
    assert f"Requires-Dist: opencv-python-headless=={version}\n" in metadata
    assert f"Version: {version}+headless\n" in metadata


def test_constraints_pin_every_requirement():
    files = ("constraints.txt", "constraints-onedl.txt")
    text = "".join((ROOT / "requirements" / name).read_text() for name in files)
    pins = set(re.findall(r"(?m)^([\w-]+)==", text))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {"pip", "setuptools", *project["dependencies"]}
    needed.update(*(extras[name] for name in extras.keys() - {"bench", "dev"}))
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in needed}
    assert names - {"ropevit-mmdet"} <= pins
    assert not any(name.startswith(("nvidia", "triton")) for name in pins)
