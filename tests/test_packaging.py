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


def ropevit(directory, *arguments):
    return run(directory, sys.executable, "-m", "ropevit_cli.main", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    clone = tmp_path_factory.mktemp("clone")
    for name in (*SOURCES, "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    build = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "out", "."]
    run(clone, *build)
    return next((clone / "out").glob("ropevit_mmdet-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory with the wheel installed in `site`, over the running environment."""
    directory = tmp_path_factory.mktemp("elsewhere")
    run(directory, *PIP, "install", "--no-deps", "--no-index", "--target", "site", wheel)
    return directory


@pytest.fixture(scope="module")
def trained(installed):
    """The same after `make-shapes` and `train`: `data/shapes` and `run/iter_2.pth`."""
    counts = ["--num-train", 6, "--num-val", 2, "--num-test", 2, "--size", 112, "--workers", 1]
    ropevit(installed, "make-shapes", *counts)
    ropevit(installed, "train", "shapes_retinanet", "--work-dir", "run", "--cfg-options", *OPTIONS)
    return installed


def test_wheel_contains_configs_commands_and_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name) for name in names if name.endswith("/METADATA"))
        (scripts,) = (archive.read(name) for name in names if name.endswith("entry_points.txt"))
    configs = {f"ropevit_mmdet/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.py")}
    commands = {f"ropevit_cli/{path.name}" for path in ROOT.glob("ropevit_cli/*.py")}
    assert names >= configs | commands | {"ropevit_mmdet/py.typed"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "ropevit_cli",
        "ropevit_mmdet",
    }
    required = metadata.decode().split("Provides-Extra")[0]
    assert "Requires-Dist: torch>=2.10\n" in required and "Requires-Dist: mm" not in required
    assert b"ropevit = ropevit_cli.main:main" in scripts


def test_bases_load_from_the_wheel(installed):
    program = """
import ropevit_mmdet
from mmengine.config import Config
from ropevit_mmdet.compat import packaged_config
assert ropevit_mmdet.__file__.startswith(__import__("os").getcwd()), ropevit_mmdet.__file__
ours = Config.fromfile("ours.py")
assert ours.to_dict() == Config.fromfile(packaged_config("ropevit_maskrcnn")).to_dict()
assert Config.fromfile("theirs.py").model.type == "MaskRCNN"
"""
    (installed / "ours.py").write_text('_base_ = "ropevit_mmdet::ropevit_maskrcnn.py"\n')
    (installed / "theirs.py").write_text(
        '_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"\n'
    )
    run(installed, sys.executable, "-c", program)


def test_train_from_the_wheel(trained):
    assert (trained / "run" / "iter_2.pth").is_file()


def test_test_from_the_wheel(trained):
    config, checkpoint = trained / "run" / "shapes_retinanet.py", trained / "run" / "iter_2.pth"
    ropevit(trained, "test", config, checkpoint, "--work-dir", "test", "--out", "results.json")
    assert (trained / "results.json").is_file()


def test_predict_from_the_wheel(trained):
    config, checkpoint = trained / "run" / "shapes_retinanet.py", trained / "run" / "iter_2.pth"
    image = trained / "data" / "shapes" / "test" / "000001.png"
    ropevit(trained, "predict", config, checkpoint, image, "--out-dir", "out", "--device", "cpu")
    assert list((trained / "out").rglob("*000001*"))


def test_export_from_the_wheel(trained):
    config, checkpoint = trained / "run" / "shapes_retinanet.py", trained / "run" / "iter_2.pth"
    ropevit(trained, "export", config, checkpoint, "features.pt2", "--format", "torch")
    assert (trained / "features.pt2").is_file()


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
