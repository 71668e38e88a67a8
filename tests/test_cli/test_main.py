"""`ropevit` itself: help without other packages, exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ropevit_cli import train
from ropevit_cli.main import COMMANDS
from tests.commands import ropevit

ROOT = Path(__file__).parents[2]
WITHOUT_PACKAGES = """
import sys
sys.path.insert(0, sys.argv[1])
from ropevit_cli.main import COMMANDS, main

class Block:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in sys.stdlib_module_names and package != "ropevit_cli":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
"""
EVERY_HELP = """
for argv in ["--help"], *([command, "--help"] for command in COMMANDS):
    try:
        main(argv)
    except SystemExit as stop:
        assert stop.code == 0, argv
"""


def run_without_packages(program):
    argv = [sys.executable, "-c", WITHOUT_PACKAGES + program, ROOT]
    return subprocess.run(argv, capture_output=True, text=True)


def test_help_needs_only_the_standard_library():
    done = run_without_packages(EVERY_HELP)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"usage: ropevit {command} " in done.stdout


def test_command_without_packages_names_doctor():
    done = run_without_packages('sys.exit(main(["train", "config.py"]))')
    assert done.returncode == 1
    assert done.stderr.startswith("error: ImportError: ") and "`ropevit doctor`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("argv", [[], ["trian"], ["train"], ["train", "c.py", "--rseume"]])
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        ropevit(*argv)
    assert stop.value.code == 2 and "ropevit" in capsys.readouterr().err


def test_interrupt_is_one_line(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupt)
    assert ropevit("train", "config.py") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_tools_run_from_any_directory(tmp_path):
    """In a clone that is not installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, ROOT / "tools" / "test.py", "gone.py", "gone.pth"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and "gone.pth" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # no leaks that nanobind reports at the end
    command = [sys.executable, ROOT / "tools" / "train.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ropevit train ")
