"""A run that was killed and resumed ends with the weights of an uninterrupted one, to the bit."""

import os
import signal
import tracemalloc
from types import SimpleNamespace

import mmengine.runner.runner as runner_module
import pytest
import torch
from mmengine.runner import checkpoint as checkpoint_module

from ropevit_mmdet._output import MB
from ropevit_mmdet.engine import ResumableCheckpointHook, latest_checkpoint
from ropevit_mmdet.engine.hooks._atomic_checkpoints import atomic_checkpoints
from tests.fault_injection import EPOCHS, assert_same, train, train_with, write_config

CASES = {
    "iterations, workers, accumulation, EMA": (
        dict(workers=2, accumulated=2, ema=True), 8, "sigkill",
    ),
    "iterations, while writing": (dict(accumulated=2), 6, "sigkill_while_writing"),
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
    config = write_config(tmp_path)
    text = config.read_text().replace("save_best=None", "save_best='auto'")
    config.write_text(text + "train_cfg.update(max_iters=6)\n")
    first = train(config, tmp_path / "run")
    (best,) = (tmp_path / "run").glob("best_*.pth")
    first["message_hub"]["runtime_info"]["best_score"] = -1.0
    torch.save(first, tmp_path / "run" / "iter_6.pth")
    config.write_text(text)
    train(config, tmp_path / "run", resume=True)
    names = sorted(file.name for file in (tmp_path / "run").glob("*.pth"))
    assert names[1:] == ["iter_6.pth", "iter_9.pth"]
    assert names[0].startswith("best_") and names[0] != best.name
    assert runner_module.save_checkpoint.__module__ == "mmengine.runner.checkpoint"


def test_corrupted_checkpoints_are_skipped(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        torch.save(dict(weights=torch.rand(1000)), tmp_path / f"iter_{step}.pth")
        os.utime(tmp_path / f"iter_{step}.pth", (step, step))
    (tmp_path / "last_checkpoint").write_text(f"/moved/since/{tmp_path.name}/iter_2.pth")
    assert latest_checkpoint(tmp_path).name == "iter_2.pth"

    intact = (tmp_path / "iter_2.pth").read_bytes()
    (tmp_path / "best_iter_2.pth").write_bytes(intact)  # without an optimizer
    for bad in (intact[:-100], intact[: len(intact) // 2], b"", intact[:900] + b"!" + intact[901:]):
        (tmp_path / "iter_2.pth").write_bytes(bad)
        assert latest_checkpoint(tmp_path).name == "iter_1.pth"
    for pointer in (b"", b"\0" * 9, b"\xff", b"gone.pth"):
        (tmp_path / "last_checkpoint").write_bytes(pointer)
        assert latest_checkpoint(tmp_path).name == "iter_1.pth"


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


def test_a_checkpoint_is_written_without_a_copy_in_memory(tmp_path):
    checkpoint = {"state_dict": {"weight": torch.arange(8 * MB, dtype=torch.float32)}}  # 32 MB
    tracemalloc.start()
    with atomic_checkpoints():
        checkpoint_module.save_checkpoint(checkpoint, str(tmp_path / "weights.pth"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MB
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True)
    torch.testing.assert_close(loaded, checkpoint, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]
