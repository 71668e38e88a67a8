"""Logs of runs: all parts joined, each step once."""

import json

import pytest
from mmengine.runner import Runner

from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.visualization import read_run
from tests.tiny_coco import write_tiny


def write_part(work_dir, start, entries):
    directory = work_dir / start / "vis_data"
    directory.mkdir(parents=True)
    (directory / "scalars.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return directory / "scalars.json"


def iteration(step, loss=1.0, time=1.0, **more):
    return dict(loss=loss, time=time, step=step, **more)


@pytest.fixture
def resumed(tmp_path):
    """A run that reached 15, continued from 10 and validated three times, last at 20."""
    first = [iteration(step, loss=step, time=2.0, lr=0.1) for step in (5, 10, 15)]
    second = [iteration(step, loss=100 + step, time=4.0, lr=0.2) for step in (15, 20)]
    first.insert(2, {"coco/bbox_mAP": 0.1, "step": 0})  # mmengine's default by iteration
    first.append({"coco/bbox_mAP": 0.2, "step": 0})  # at 15, which the second part repeats
    second.append({"coco/bbox_mAP": 0.3, "step": 20})  # log_metric_by_epoch=False
    write_part(tmp_path / "run", "20260101_000000", first)
    write_part(tmp_path / "run", "20260102_000000", second)
    return tmp_path / "run"


def test_parts_are_joined_and_repeated_steps_count_once(resumed):
    run = read_run(resumed)
    losses = [(entry["step"], entry["loss"]) for entry in run.train]
    assert losses == [(5, 5), (10, 10), (15, 115), (20, 120)]
    assert [(entry["step"], entry["coco/bbox_mAP"]) for entry in run.val] == [(10, 0.1), (20, 0.3)]
    assert run.seconds == 60
    part = resumed / "20260101_000000"
    for path in (part, part / "vis_data", part / "vis_data" / "scalars.json"):
        assert [entry["step"] for entry in read_run(path).train] == [5, 10, 15]
        assert read_run(path).name == run.name == "run"
    write_part(resumed, "20260103_000000", [iteration(5, loss=7.0)])  # again from scratch
    run = read_run(resumed, "other")
    assert (run.name, run.train, run.val) == ("other", [iteration(5, loss=7.0)], [])


def test_only_numbers_are_read_and_a_truncated_last_line_is_skipped(tmp_path, resumed):
    file = write_part(tmp_path, "a", [iteration(1, note="warm-up", memory=7), iteration(2)])
    file.write_text(file.read_text()[:-9])
    assert read_run(tmp_path).train == [iteration(1, memory=7)]
    before = read_run(resumed)
    write_part(resumed, "20260103_000000", []).write_text('{"loss": 1.')
    assert read_run(resumed) == before


@pytest.mark.parametrize("content", [b"PK\x03\x04\xff\xfe", b"text\n", b"[1]\n", b'{"a": 1}\n{}'])
def test_other_files_are_errors(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth is not the log of a run"):
        read_run(tmp_path / "x.pth")


@pytest.mark.parametrize("by_epoch", [True, False])
def test_validations_of_a_real_run_have_their_iteration(tmp_path, by_epoch):
    """For both of mmengine's ways to count validations."""
    options = {"train_cfg.max_iters": 4, "train_cfg.val_interval": 2}
    logger = dict(type="LoggerHook", interval=1, log_metric_by_epoch=by_epoch)
    options["default_hooks.logger"] = logger
    config = load_config(write_tiny(tmp_path), options, work_dir=str(tmp_path / "run"))
    Runner.from_cfg(config).train()
    run = read_run(tmp_path / "run")
    assert [entry["step"] for entry in run.train] == [1, 2, 3, 4]
    assert [entry["step"] for entry in run.val] == [2, 4]
    assert all(0 <= entry["coco/bbox_mAP"] <= 1 for entry in run.val)
