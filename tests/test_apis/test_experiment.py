"""Runs that are compared: resumed, kept, averaged; and the classification set cut from shapes."""

import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import pytest
from mmengine.runner import Runner
from PIL import Image

from ropevit_mmdet.apis.compare.experiment import (
    Run,
    RunFailed,
    all_metrics,
    mean_and_spread,
    result_of,
    training_seconds,
    weights_files,
)
from ropevit_mmdet.datasets.shapes.crops import cut_objects
from ropevit_mmdet.engine.config import load_config
from tests.tiny_coco import CLASSES, write_tiny

EXECUTE = """
import sys
from pathlib import Path
import ropevit_mmdet
from ropevit_mmdet.apis.compare.experiment import execute
execute(Path(sys.argv[1]))
"""
COMMAND = [sys.executable, "-c", EXECUTE]


OPTIONS = {
    "train_cfg.max_iters": 60,
    "default_hooks.checkpoint": dict(type="ResumableCheckpointHook", interval=10),
    "default_hooks.logger": dict(type="LoggerHook", interval=10),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose first parent was killed in the midst of it: its settings, root and result."""
    root = tmp_path_factory.mktemp("runs")
    run = Run("first", str(write_tiny(root)), OPTIONS, seed=3)
    directory = root / run.directory
    arguments = (run, root, COMMAND, lambda message: None)
    parent = multiprocessing.get_context("fork").Process(target=result_of, args=arguments)
    parent.start()
    while not list(directory.glob("iter_*.pth")):
        assert parent.is_alive(), (directory / "log.txt").read_text()[-2000:]
        time.sleep(0.02)
    parent.kill()
    parent.join()
    said = []
    result = result_of(run, root, COMMAND, said.append)
    assert len(said) == 1 and "first-seed3" in said[0]
    return run, root, result


def test_a_run_ends_with_who_started_it_and_another_goes_on(finished, tmp_path):
    """What comes out is what comes of a run that nothing disturbs."""
    run, root, result = finished
    log = (root / run.directory / "log.txt").read_text()
    assert log.count("ended: the program that started this run is gone") == 1
    assert "resumed epoch: 0, iter: " in log
    assert result["iterations"] == 60 and result["train_seconds"] > 0
    assert result["parameters"] > 1e4
    config = load_config(run.config, run.options, work_dir=str(tmp_path))
    config.randomness.seed = run.seed
    runner = Runner.from_cfg(config)
    runner.train()
    undisturbed = runner.test()
    assert undisturbed["coco/bbox_mAP"] > 0
    for key, value in undisturbed.items():
        assert result["metrics"][key] == (value if value >= 0 else None), key


def test_a_finished_run_is_kept(finished, monkeypatch):
    run, root, result = finished
    assert "seed=3" in (root / run.directory / "run.py").read_text()
    assert result_of(run, root, ["no such program"], print) == result
    monkeypatch.chdir(root)  # the same directory by another path
    assert result_of(run, Path(), ["no such program"], print) == result
    other = run._replace(options={"train_cfg.max_iters": 2})
    with pytest.raises(ValueError, match="holds a run of other settings or weights: move it away"):
        result_of(other, root, COMMAND, print)


def test_a_run_is_that_of_the_weights_in_its_files(finished, tmp_path):
    run, root, result = finished
    weights = tmp_path / "weights.pth"
    shutil.copy(root / run.directory / "iter_60.pth", weights)
    options = {"load_from": str(weights), "train_cfg.max_iters": 60}
    tested = run._replace(name="tested", options=options, trains=False)
    again = result_of(tested, tmp_path, COMMAND, print)
    assert again["metrics"] == result["metrics"] and again["train_seconds"] == 0
    weights.write_bytes(weights.read_bytes() + b"other")
    with pytest.raises(ValueError, match="tested-seed3 holds a run of other settings or weights"):
        result_of(tested, tmp_path, COMMAND, print)


def test_files_of_weights_are_found_wherever_a_config_names_them(tmp_path):
    file = tmp_path / "net.pt"
    file.touch()
    init = dict(type="Pretrained", checkpoint=str(file))
    model = dict(backbone=dict(backbone=dict(init_cfg=init)), head=dict(init_cfg=[init]))
    settings = dict(
        model=model, load_from=None, default_hooks=dict(checkpoint=dict(type="CheckpointHook"))
    )
    assert list(weights_files(settings)) == [str(file)] * 2
    init["checkpoint"] = "birder://name"
    assert list(weights_files(settings)) == []


def test_a_test_that_finds_nothing_has_an_ap_of_0():
    """mmdet's CocoMetric returns no figures then."""
    box = dict(metric="bbox", prefix="box")
    found = {"box/bbox_mAP": 0.5, "box/bbox_mAP_s": -1.0, "box/dark_precision": float("nan")}
    metrics = all_metrics(found, [box, dict(metric=["segm"])])
    assert metrics["box/bbox_mAP"] == 0.5 and metrics["coco/segm_mAP_50"] == 0.0
    assert metrics["box/bbox_mAP_s"] is metrics["box/dark_precision"] is None
    assert len(metrics) == 13


def test_a_run_that_fails_names_its_log(tmp_path):
    run = Run("bad", str(write_tiny(tmp_path)), {})
    with pytest.raises(RunFailed, match=r"bad-seed0 failed, see .*log.txt"):
        result_of(run, tmp_path, [sys.executable, "-c", "raise SystemExit(1)"], print)


def test_seconds_are_added_over_the_parts_of_a_run(tmp_path):
    """The second part continues from iteration 10, the first had got to 15."""
    for part, entries in (("a", [(5, 1.0), (10, 2.0), (15, 9.0)]), ("b", [(15, 3.0), (20, 1.0)])):
        directory = tmp_path / part / "vis_data"
        directory.mkdir(parents=True)
        lines = [json.dumps(dict(step=step, time=time, loss=1.0)) for step, time in entries]
        lines.append(json.dumps({"coco/bbox_mAP": 0.5, "step": 20}))
        (directory / "scalars.json").write_text("\n".join(lines))
    assert training_seconds(tmp_path) == 5 * 1.0 + 5 * 2.0 + 5 * 3.0 + 5 * 1.0


def test_mean_and_spread():
    assert mean_and_spread([0.5]) == (0.5, 0.0)
    assert mean_and_spread([0.1, 0.3]) == pytest.approx((0.2, 0.1))


def test_objects_are_cut_into_directories_of_their_classes(tmp_path):
    write_tiny(tmp_path, num_images=6)
    data = tmp_path / "data"
    root = tmp_path / "classes"
    assert cut_objects(data / "images", data / "annotations.json", root, side=24) == 6
    assert {directory.name for directory in root.iterdir()} == set(CLASSES)
    for name, bright in zip(CLASSES, (False, True), strict=True):
        files = sorted((root / name).iterdir())
        assert len(files) == 3
        for file in files:
            with Image.open(file) as cut:
                assert cut.size == (24, 24)
                red = cut.getpixel((cut.width // 2, cut.height // 2))[0]
                assert (red == 220) if bright else (red == 20)
    before = {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
    assert cut_objects(data / "images", data / "annotations.json", root, side=24) == 6
    assert before == {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
