"""SIGTERM saves and ends a run with a status of its own; resumed, it ends as if never stopped."""

import re
import signal

import pytest
import torch

from ropevit_mmdet.engine.hooks.preemption_hook import EXIT_STATUS, PreemptionHook
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from tests.fault_injection import (
    EPOCHS,
    ITERATIONS,
    TORCHRUN,
    assert_same,
    prepared,
    train,
    train_with,
)

# Settings, the iteration at work, what it saves, and the validations that were over by the end.
CASES = {
    "iterations, workers, in an accumulation, EMA": (
        dict(loop=ITERATIONS, workers=2, accumulated=2, ema=True), 4, "iter_5.pth", 2,
    ),
    "a validation is due": (
        dict(loop=ITERATIONS, workers=0, accumulated=1, ema=False), 3, "iter_4.pth", 2,
    ),
    "within an epoch, workers, accumulation, EMA": (
        dict(loop=EPOCHS, workers=1, accumulated=3, ema=True), 2, "iter_3.pth", 1,
    ),
    "behind the last batch of an epoch": (
        dict(loop=EPOCHS, workers=0, accumulated=1, ema=False), 3, "iter_4.pth", 1,
    ),
}  # fmt: skip
SLOW = ("a validation is due", "behind the last batch of an epoch")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES],
)
def test_a_run_that_is_told_to_go_resumes_to_the_bit(name, tmp_path):
    settings, iteration, saved, validations = CASES[name]
    config = prepared(tmp_path, **settings)
    expected = train(config, tmp_path / "whole")

    work_dir = tmp_path / "told"
    done = train_with(config, work_dir, dict(kind="machine_goes", iteration=iteration))
    assert done.returncode == EXIT_STATUS == 75, done.stderr[-3000:]
    said = re.findall(r"SIGTERM: saved .*", done.stderr + done.stdout)
    assert said and f"{saved} behind iteration {iteration + 1}; --resume continues" in said[0]
    assert "Traceback" not in done.stderr
    assert latest_checkpoint(work_dir).name == saved
    assert (done.stderr + done.stdout).count("bbox_mAP:") == validations

    assert_same(train(config, work_dir, resume=True), expected)
    if settings["loop"] is EPOCHS:  # what was saved out of turn is gone
        assert {file.name for file in work_dir.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


def test_another_signal_reaches_workers_too(tmp_path):
    config = prepared(tmp_path, loop=ITERATIONS, workers=2, accumulated=1, ema=False)
    with config.open("a") as file:
        file.write("default_hooks['preemption'].update(signals=['SIGTERM', 'SIGUSR1'])\n")
    failure = dict(kind="machine_goes_by_usr1", iteration=4)
    done = train_with(config, tmp_path / "told", failure)
    assert done.returncode == EXIT_STATUS, done.stderr[-3000:]
    assert "SIGUSR1: saved" in done.stderr + done.stdout
    assert latest_checkpoint(tmp_path / "told").name == "iter_5.pth"


@pytest.mark.slow
def test_twice_in_an_epoch(tmp_path):
    config = prepared(tmp_path, loop=EPOCHS, workers=0, accumulated=3, ema=False)
    config.write_text(config.read_text() + "train_dataloader.update(batch_size=1)\n")
    expected = train(config, tmp_path / "whole")
    for iteration, arguments in ((4, ()), (6, ("--resume",))):
        failure = dict(kind="told_to_go", iteration=iteration)
        done = train_with(config, tmp_path / "told", failure, arguments=arguments)
        assert done.returncode == EXIT_STATUS, done.stderr[-3000:]
        interim = [file.name for file in (tmp_path / "told").glob("iter_*.pth")]
        assert interim == [f"iter_{iteration + 1}.pth"]
    assert_same(train(config, tmp_path / "told", resume=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["before_train_iter", "after_val_iter"])
def test_at_the_end_it_ends_as_always(stage, tmp_path):
    config = prepared(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=False)
    last = 8 if stage == "before_train_iter" else 9
    failure = dict(kind="told_to_go", iteration=last, stage=stage)
    done = train_with(config, tmp_path / "told", failure)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bbox_mAP" in done.stderr + done.stdout
    assert (tmp_path / "told" / "iter_9.pth").exists()


@pytest.mark.parametrize(
    "killed", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["killed", "finished"]
)
def test_in_a_validation_it_saves_at_once(killed, tmp_path):
    """In the middle of it, with averaged weights in the model; then it is finished, if it can."""
    config = prepared(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=True)
    expected = train(config, tmp_path / "whole")
    kind = "told_to_go_and_killed" if killed else "told_to_go"
    failure = dict(kind=kind, iteration=2, stage="after_val_iter")
    done = train_with(config, tmp_path / "told", failure)
    assert done.returncode == (-signal.SIGKILL if killed else EXIT_STATUS), done.stderr[-3000:]
    said = done.stderr + done.stdout
    assert "iter_2.pth; the validation is finished first" in said
    assert ("bbox_mAP" in said) != killed
    assert latest_checkpoint(tmp_path / "told").name == "iter_2.pth"
    assert_same(train(config, tmp_path / "told", resume=True), expected)


@pytest.mark.slow
def test_processes_agree_on_the_step(tmp_path):
    """One of two is told; its resumed run, of two processes too, ends like the whole one."""
    config = prepared(tmp_path, loop=ITERATIONS, workers=1, accumulated=2, ema=False)
    never = dict(kind="told_to_go", iteration=99)
    assert train_with(config, tmp_path / "whole", never, command=TORCHRUN).returncode == 0
    expected = torch.load(latest_checkpoint(tmp_path / "whole"), weights_only=True)

    failure = dict(kind="told_to_go", iteration=4, rank=1)
    done = train_with(config, tmp_path / "told", failure, command=TORCHRUN)
    assert done.returncode and f"exitcode  : {EXIT_STATUS}" in done.stderr, done.stderr[-3000:]
    assert "a signal elsewhere: saved " in done.stderr + done.stdout
    assert latest_checkpoint(tmp_path / "told").name == "iter_6.pth"  # a step of the optimizer
    again = dict(command=TORCHRUN, arguments=("--resume",))
    assert train_with(config, tmp_path / "told", never, **again).returncode == 0
    assert_same(torch.load(latest_checkpoint(tmp_path / "told"), weights_only=True), expected)


@pytest.mark.parametrize("names", ["SIGTERM", ["SIGNOTHING"]])
def test_signals_that_are_none(names):
    with pytest.raises(ValueError, match="are no names of signals"):
        PreemptionHook(signals=names)
