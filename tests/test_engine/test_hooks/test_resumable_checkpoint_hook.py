"""A run that was killed and resumed ends with the weights of one that never stopped, to the bit."""

import os
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend

from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import (
    ResumableCheckpointHook,
    latest_checkpoint,
    random_states,
    set_random_states,
)
from tests.fault_injection import EPOCHS, ITERATIONS, assert_same, train, train_with, write_config

CASES = {
    "iterations, workers, accumulation, EMA": (
        dict(loop=ITERATIONS, workers=2, accumulated=2, ema=True),
        8,
        "killed",
    ),
    "iterations, while writing": (
        dict(loop=ITERATIONS, workers=0, accumulated=2, ema=False),
        6,
        "killed_while_writing",
    ),
    "epochs, persistent workers, accumulation, EMA": (
        dict(loop=EPOCHS, workers=1, accumulated=3, ema=True),
        6,
        "killed",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_bit(name, tmp_path):
    settings, iteration, kind = CASES[name]
    config = write_config(tmp_path, **settings)
    expected = train(config, tmp_path / "whole")

    failure = dict(kind=kind, iteration=iteration - 1, stage="after_train_iter")
    killed = train_with(config, tmp_path / "killed", failure)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "killed") is not None
    resumed = train(config, tmp_path / "killed", resume=True)

    assert ("ema_state_dict" in expected) == settings["ema"]
    assert_same(resumed, expected)
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_one_best_and_the_last_checkpoints_are_kept(tmp_path):
    config = write_config(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=False)
    text = config.read_text().replace("save_best=None", "save_best='auto', published_keys=['meta']")
    config.write_text(text)
    train(config, tmp_path / "run")
    names = sorted(file.name for file in (tmp_path / "run").glob("*.pth"))
    kept = [name for name in names if "-" not in name]  # the others mmengine publishes, by hash
    assert kept[1:] == ["iter_6.pth", "iter_9.pth"] and kept[0].startswith("best_")
    assert len(names) - len(kept) == 2


def test_random_states_go_through_a_file(tmp_path):
    random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)  # half of a pair is kept
    torch.save(random_states(), tmp_path / "states.pt")
    draws = [(random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist())]
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    draws.append((random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        torch.save(dict(weights=torch.rand(1000)), tmp_path / f"iter_{step}.pth")
        os.utime(tmp_path / f"iter_{step}.pth", (step, step))
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    assert latest_checkpoint(tmp_path).name == "iter_2.pth"

    whole = (tmp_path / "iter_2.pth").read_bytes()
    (tmp_path / "iter_2-1a2b3c4d.pth").write_bytes(whole)  # a published one, without optimizer
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", whole[:900] + b"!" + whole[901:]):
        (tmp_path / "iter_2.pth").write_bytes(damaged)
        assert latest_checkpoint(tmp_path).name == "iter_1.pth"
    (tmp_path / "iter_3.pth").symlink_to("gone.pth")
    for pointer in (b"", b"\0" * 9, b"\xff", b"iter_2.pth", b"gone.pth", b"x" * 5000, b"a\0b"):
        (tmp_path / "last_checkpoint").write_bytes(pointer)  # truncated, or out of date
        assert latest_checkpoint(tmp_path).name == "iter_1.pth"


def test_the_end_of_an_epoch_is_no_place_within_one(tmp_path):
    """Another batch size has epochs of another length: the next one begins again."""
    config = write_config(tmp_path, loop=EPOCHS, workers=0, accumulated=1, ema=False)
    text = config.read_text()
    config.write_text(text + "train_cfg.update(max_epochs=2)\n")
    first = train(config, tmp_path / "run")["meta"]
    config.write_text(text + "train_dataloader.update(batch_size=1)\n")
    last = train(config, tmp_path / "run", resume=True)["meta"]
    assert (first["epoch"], last["epoch"]) == (2, 4)
    assert last["iter"] - first["iter"] == 2 * first["iter"]


def test_a_place_within_an_epoch_of_another_length_is_refused():
    hook = ResumableCheckpointHook()
    assert hook._done_of_epoch(5) == 0
    hook._resumed = {"within_epoch": [3, 5]}
    assert hook._done_of_epoch(5) == 3
    with pytest.raises(ValueError, match="behind 3 batches of an epoch of 5, which has 9 of them"):
        hook._done_of_epoch(9)


def test_resume_in_a_config_takes_a_whole_checkpoint_too(tmp_path):
    """mmengine itself would take what `last_checkpoint` names."""
    runner = SimpleNamespace(work_dir=str(tmp_path), _resume=True, _load_from=None)
    ResumableCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (False, None)
    torch.save(dict(weights=torch.rand(9)), tmp_path / "iter_1.pth")
    (tmp_path / "iter_2.pth").write_bytes(b"PK")
    (tmp_path / "last_checkpoint").write_text("iter_2.pth")
    runner._resume = True
    ResumableCheckpointHook().before_run(runner)
    assert runner._load_from == str(tmp_path / "iter_1.pth")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "iter_1.pth"
    target.write_bytes(b"whole")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        LocalBackend().put(b"new", target)
    assert target.read_bytes() == b"whole" and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_checkpoint_loads_at_another_window_and_image_size(tmp_path):
    from mmdet.apis import init_detector

    config = write_config(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=False)
    checkpoint = tmp_path / "weights.pth"
    settings = Config.fromfile(config)
    weights = init_detector(settings, device="cpu").state_dict()
    torch.save(
        dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=("a", "b")))), checkpoint
    )
    settings.model.backbone.update(window_size=3, global_attn_indices=(0,))
    model = init_detector(settings, str(checkpoint), device="cpu")
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert model.backbone(torch.randn(1, 3, 128, 96))[0].shape == (1, 16, 8, 6)
