"""tools/train.py --tensorboard: event files beside what is written anyway, or one clear error."""

import json
import sys

import pytest
from mmengine.config import Config

from ropevit_mmdet.engine.config import use_tensorboard
from tests.test_cli.test_tools import fails, train
from tests.tiny_coco import write_tiny


def backends(visualizer):
    config = Config({"visualizer": visualizer} if visualizer else {})
    use_tensorboard(config)
    use_tensorboard(config)  # a second call adds nothing
    return [backend["type"] for backend in config.visualizer.vis_backends]


def test_the_backend_is_added_once():
    pytest.importorskip("tensorboard")
    ours = "TensorboardVisBackend"
    assert backends(None) == ["LocalVisBackend", ours]
    assert backends({"type": "DetLocalVisualizer"}) == ["LocalVisBackend", ours]
    kept = {"type": "DetLocalVisualizer", "vis_backends": [{"type": "WandbVisBackend"}]}
    assert backends(kept) == ["WandbVisBackend", ours]
    there = {"vis_backends": [{"type": f"mmdet.{ours}"}, {"type": "LocalVisBackend"}]}
    assert backends(there) == [f"mmdet.{ours}", "LocalVisBackend"]


def test_a_run_writes_what_its_log_says(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = write_tiny(tmp_path)
    hook = ["default_hooks.logger.type=LoggerHook", "default_hooks.logger.interval=1"]
    argv = [str(config), "--work-dir", str(tmp_path / "run"), "--tensorboard"]
    train.main([*argv, "--cfg-options", *hook])
    (file,) = tmp_path.glob("run/*/vis_data/events.out.tfevents.*")
    written = events.EventAccumulator(str(file)).Reload()
    lines = file.with_name("scalars.json").read_text().splitlines()  # what is written anyway
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    points = written.Scalars("loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx(losses)
    assert "coco/bbox_mAP" in written.Tags()["scalars"]


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch, capsys):
    config = write_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = fails(capsys, train.main, config, "--tensorboard")
    assert "--tensorboard needs the package" in line and "pip install tensorboard" in line
    assert not (tmp_path / "work_dirs").exists()
