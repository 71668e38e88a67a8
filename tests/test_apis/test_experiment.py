"""Runs of a comparison: continued, kept, and tied to their settings and weights."""

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from mmengine.runner import Runner

from ropevit_mmdet.apis.compare import experiment
from ropevit_mmdet.apis.compare.experiment import Run, execute, result_of
from ropevit_mmdet.engine.config import load_config
from tests.tiny_coco import write_tiny

OPTIONS = {
    "train_cfg.max_iters": 40,
    "default_hooks.checkpoint": dict(type="ResumableCheckpointHook", interval=10),
    "default_hooks.logger": dict(type="LoggerHook", interval=10),
}


@pytest.fixture(autouse=True)
def unformatted():
    """Configs are formatted in the module's fixtures, too: their texts are compared."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose first parent process was killed: the run, its root and its result."""
    root = tmp_path_factory.mktemp("runs")
    run = Run("first", str(write_tiny(root)), OPTIONS, seed=3)
    directory = root / run.directory
    arguments = (run, root, lambda message: None)
    parent = multiprocessing.get_context("fork").Process(target=result_of, args=arguments)
    parent.start()
    while not list(directory.glob("iter_*.pth")):
        assert parent.is_alive(), (directory / "log.txt").read_text()[-2000:]
        time.sleep(0.02)
    parent.kill()
    parent.join()
    lines = []
    result = result_of(run, root, lines.append)
    assert len(lines) == 1 and "first-seed3" in lines[0]
    return run, root, result


def test_a_run_ends_with_its_parent_and_continues_to_the_same_result(finished, tmp_path):
    run, root, result = finished
    log = (root / run.directory / "log.txt").read_text()
    assert log.count("ended: the program that started this run has ended") == 1
    assert "resumed epoch: 0, iter: " in log
    assert result["iterations"] == 40 and result["train_seconds"] > 0
    config = load_config(run.config, run.options, work_dir=str(tmp_path))
    config.randomness.seed = run.seed
    runner = Runner.from_cfg(config)
    runner.train()
    uninterrupted = runner.test()
    assert uninterrupted["coco/bbox_mAP"] > 0
    for key, value in uninterrupted.items():
        assert result["metrics"][key] == (value if value >= 0 else None), key


def test_a_finished_run_is_kept(finished, monkeypatch):
    run, root, result = finished
    assert "seed=3" in (root / run.directory / "run.py").read_text()
    monkeypatch.setattr(experiment, "_start", None)
    monkeypatch.chdir(root)
    for path in (root, Path()):  # the same directory
        assert result_of(run, path, print) == result
    other = run._replace(options={"train_cfg.max_iters": 2})
    with pytest.raises(ValueError, match="has a run of other settings or weights: move it away"):
        result_of(other, root, print)


def test_a_run_is_tied_to_the_content_of_its_weights(finished, tmp_path, monkeypatch):
    """In this process: another one imports everything again."""
    monkeypatch.setattr(experiment, "_start", execute)
    monkeypatch.setattr(experiment, "_end_with_input", lambda: None)
    run, root, result = finished
    weights = tmp_path / "weights.pth"
    shutil.copy(root / run.directory / "iter_40.pth", weights)
    options = {"load_from": str(weights), "train_cfg.max_iters": 40}
    tested = run._replace(name="tested", options=options, trains=False)
    again = result_of(tested, tmp_path, print)
    assert f": {weights}\n" in (tmp_path / "tested-seed3" / "run.py").read_text()
    assert again["metrics"] == result["metrics"] and again["train_seconds"] == 0
    weights.write_bytes(weights.read_bytes() + b"other")
    with pytest.raises(ValueError, match="tested-seed3 has a run of other settings or weights"):
        result_of(tested, tmp_path, print)
