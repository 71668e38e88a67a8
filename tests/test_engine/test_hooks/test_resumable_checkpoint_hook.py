"""A run that was killed and resumed ends with the weights of an uninterrupted one, to the bit."""

import shutil
import signal
from types import SimpleNamespace

import mmengine.runner.runner as runner_module
import pytest
import torch
from mmengine.hooks import CheckpointHook

from ropevit_mmdet.engine import ResumableCheckpointHook, latest_checkpoint
from tests.fault_injection import EPOCHS, ITERATIONS, assert_same, train, train_with, write_config

CASES = {
    "iterations, workers, accumulation, EMA, while writing": (
        dict(workers=2, accumulated=2, ema=True), 6, "sigkill_while_writing",
    ),
    "epochs, persistent workers, accumulation, EMA": (
        dict(loop=EPOCHS, workers=1, accumulated=3, ema=True), 6, "sigkill",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_bit(name, tmp_path):
    settings, iteration, event = CASES[name]
    config = write_config(tmp_path, **settings)
    expected = train(config, tmp_path / "uninterrupted")

    failure = dict(event=event, iteration=iteration - 1, stage="after_train_iter")
    killed = train_with(config, tmp_path / "killed", failure)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "killed") is not None
    resumed = train(config, tmp_path / "killed", resume=True)

    assert ("ema_state_dict" in expected) == settings.get("ema", False)
    assert_same(resumed, expected)
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_best_and_last_checkpoints_replace_earlier_ones(tmp_path):
    """Of their own work dir: that of the original stays as it is when a copy is resumed."""
    more = "default_hooks['checkpoint'].update(save_best='auto')\n"
    config = write_config(tmp_path, more=more + "train_cfg.update(max_iters=6)\n")
    original, copied = tmp_path / "original", tmp_path / "copied"
    first = train(config, original)
    first["message_hub"]["runtime_info"]["best_score"] = -1.0
    torch.save(first, original / "iter_6.pth")
    shutil.copytree(original, copied)
    before = sorted(file.name for file in original.glob("*.pth"))
    train(write_config(tmp_path, more=more), copied, resume=True)
    names = sorted(file.name for file in copied.glob("*.pth"))
    assert names[1:] == ["iter_6.pth", "iter_9.pth"]
    assert names[0].startswith("best_") and names[0] != before[0]
    assert sorted(file.name for file in original.glob("*.pth")) == before
    assert runner_module.save_checkpoint.__module__ == "mmengine.runner.checkpoint"


@pytest.mark.parametrize(
    ("loop", "interval", "saved"),
    [(ITERATIONS, 3, "iter_2.pth"), (ITERATIONS, 2, "iter_2.pth"), (EPOCHS, 3, "epoch_1.pth")],
)
def test_a_run_that_another_hook_ends_saves_once(loop, interval, saved, tmp_path, monkeypatch):
    """At its first validation, after two iterations or an epoch."""
    stop = "dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', stopping_threshold=-1.0)"
    more = f"custom_hooks = [{stop}]\ndefault_hooks['checkpoint'].update(interval={interval})\n"
    config = write_config(tmp_path, loop=loop, more=more)
    steps, save = [], CheckpointHook._save_checkpoint_with_step

    def watched(self, runner, step, meta):
        steps.append(step)
        save(self, runner, step, meta)

    monkeypatch.setattr(CheckpointHook, "_save_checkpoint_with_step", watched)
    assert train(config, tmp_path / "run")["meta"]["iter"] == 2
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith(f"/{saved}")
    assert [file.name for file in (tmp_path / "run").glob("*.pth")] == [saved]
    assert len(steps) == 1


def test_resume_in_a_config_uses_an_intact_checkpoint_too(tmp_path):
    runner = SimpleNamespace(work_dir=str(tmp_path), _resume=True, _load_from=None)
    ResumableCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (False, None)
    torch.save(dict(weights=torch.rand(9)), tmp_path / "iter_1.pth")
    (tmp_path / "iter_2.pth").write_bytes(b"PK")
    (tmp_path / "last_checkpoint").write_text("iter_2.pth")
    runner._resume = True
    ResumableCheckpointHook().before_run(runner)
    assert runner._load_from == str(tmp_path / "iter_1.pth")


def test_resume_within_an_epoch_refuses_another_number_of_batches():
    hook = ResumableCheckpointHook()
    hook._resumed = {"within_epoch": [3, 5]}
    assert hook._batches_done(5) == 3
    with pytest.raises(ValueError, match="after 3 of 5 batches of an epoch, which now has 9"):
        hook._batches_done(9)
