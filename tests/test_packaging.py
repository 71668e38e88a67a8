"""The wheel: its contents, and the commands from an installation without the clone."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("configs", "ropevit_cli", "ropevit_mmdet", "pyproject.toml", "setup.py", "README.md")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
# Two steps of training, without loader processes.
OPTIONS = [
    *("train_cfg.max_iters=2", "train_cfg.val_interval=2", "param_scheduler=None"),
    "default_hooks.checkpoint.interval=2",
]
for split in ("train", "val", "test"):
    loader = f"{split}_dataloader"
    OPTIONS += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]


def run(directory, *command, **variables):
    """Runs a command in `directory` with the packages in `directory/site` first on the path."""
    environ = {**os.environ, "PYTHONPATH": str(directory / "site"), **variables}
    done = subprocess.run(
        [*map(str, command)], cwd=directory, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    clone = tmp_path_factory.mktemp("clone")
    for name in (*SOURCES, "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    build = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "out", "."]
    run(clone, *build)
    return next((clone / "out").glob("ropevit_mmdet-*.whl"))


def test_wheel_contains_configs_commands_and_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name) for name in names if name.endswith("/METADATA"))
        (scripts,) = (archive.read(name) for name in names if name.endswith("entry_points.txt"))
    configs = {f"ropevit_mmdet/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.py")}
    commands = {f"ropevit_cli/{path.name}" for path in ROOT.glob("ropevit_cli/*.py")}
    others = {"ropevit_mmdet/py.typed", "ropevit_mmdet/apis/report/report.html"}
    assert names >= configs | commands | others
    directories = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert directories == {"ropevit_cli", "ropevit_mmdet"}
    required = metadata.decode().split("Provides-Extra")[0]
    assert "Requires-Dist: torch>=2.10\n" in required and "Requires-Dist: mm" not in required
    assert b"ropevit = ropevit_cli.main:main" in scripts


def test_commands_from_the_wheel(wheel, tmp_path):
    """The path of a user, installed over the running environment, in one process."""
    run(tmp_path, *PIP, "install", "--no-deps", "--no-index", "--target", "site", wheel)
    (tmp_path / "own.py").write_text('_base_ = "ropevit_mmdet::shapes_retinanet.py"\n')
    counts = "--num-train 6 --num-val 2 --num-test 2 --size 112 --workers 1".split()
    detector = ["run/own.py", "run/iter_2.pth"]
    commands = [
        ["make-shapes", *counts],
        ["train", "own.py", "--work-dir", "run", "--cfg-options", *OPTIONS],
        ["test", *detector, "--work-dir", "test", "--out", "results.json"],
        ["predict", *detector, "data/shapes/test/000001.png", "--out-dir", "out"],
        ["export", *detector, "features.pt2", "--format", "torch"],
    ]
    program = f"""
import os
import ropevit_mmdet
from ropevit_cli.main import main
assert ropevit_mmdet.__file__.startswith(os.getcwd()), ropevit_mmdet.__file__
for argv in {commands}:
    assert not main(argv), argv
"""
    run(tmp_path, sys.executable, "-c", program, CUDA_VISIBLE_DEVICES="")
    for name in ("run/iter_2.pth", "results.json", "features.pt2"):
        assert (tmp_path / name).is_file()
    assert list((tmp_path / "out").rglob("*000001*"))


@pytest.mark.slow
def test_wheel_in_an_empty_environment(wheel, tmp_path):
    """Installs everything from the package index, with the tested versions."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, *PIP[1:], "install", "-c", ROOT / "requirements" / "constraints.txt"]
    run(tmp_path, *pip, f"{wheel}[mm]", PYTHONPATH="")
    command = [python.with_name("ropevit"), "make-shapes", "data", "--num-train", 2]
    run(tmp_path, *command, "--num-val", 2, "--num-test", 2, PYTHONPATH="")
    run(tmp_path, python, "-c", "import ropevit_mmdet, mmdet.apis", PYTHONPATH="")
