"""SIGTERM saves and ends a run with its own status; resumed, it ends as an uninterrupted one."""

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from ropevit_mmdet.engine import PreemptionHook, ResumableCheckpointHook, latest_checkpoint
from ropevit_mmdet.engine.hooks.preemption_hook import EXIT_STATUS
from tests.fault_injection import EPOCHS, TORCHRUN, assert_same, train, train_with, write_config
from tests.processes import ROOT

# Settings, the iteration of the signal, the checkpoint, and the validations completed by the end.
CASES = {
    "iterations, workers, in an accumulation, EMA": (
        dict(workers=2, accumulated=2, ema=True), 4, "iter_5.pth", 2,
    ),
    "a validation is due": ({}, 3, "iter_4.pth", 2),
    "within an epoch, workers, accumulation, EMA": (
        dict(loop=EPOCHS, workers=1, accumulated=3, ema=True), 2, "iter_3.pth", 1,
    ),
    "after the last batch of an epoch": (dict(loop=EPOCHS), 3, "iter_4.pth", 1),
}  # fmt: skip
SLOW = ("a validation is due", "after the last batch of an epoch")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_a_run_that_received_sigterm_resumes_to_the_bit(name, tmp_path):
    settings, iteration, saved, validations = CASES[name]
    config = write_config(tmp_path, **settings)
    expected = train(config, tmp_path / "uninterrupted")

    work_dir = tmp_path / "stopped"
    done = train_with(config, work_dir, dict(event="sigterm_to_group", iteration=iteration))
    assert done.returncode == EXIT_STATUS == 75, done.stderr[-3000:]
    output = done.stderr + done.stdout
    assert re.search(rf"SIGTERM: saved .*{saved} after iteration {iteration + 1}; --resume", output)
    assert "Traceback" not in done.stderr
    assert latest_checkpoint(work_dir).name == saved
    assert output.count("bbox_mAP:") == validations

    assert_same(train(config, work_dir, resume=True), expected)
    if settings.get("loop") is EPOCHS:  # the one saved within an epoch was replaced
        assert {file.name for file in work_dir.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


def test_another_signal_does_not_end_workers_either(tmp_path):
    signals = "default_hooks['preemption'].update(signals=['SIGTERM', 'SIGUSR1'])\n"
    config = write_config(tmp_path, workers=2, more=signals)
    done = train_with(config, tmp_path / "run", dict(event="sigusr1_to_group", iteration=4))
    assert done.returncode == EXIT_STATUS, done.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "run").name == "iter_5.pth"


@pytest.mark.slow
def test_twice_in_an_epoch(tmp_path):
    config = write_config(
        tmp_path, loop=EPOCHS, accumulated=3, more="train_dataloader.update(batch_size=1)\n"
    )
    expected = train(config, tmp_path / "uninterrupted")
    for iteration, arguments in ((4, ()), (6, ("--resume",))):
        failure = dict(event="sigterm", iteration=iteration)
        done = train_with(config, tmp_path / "stopped", failure, *arguments)
        assert done.returncode == EXIT_STATUS, done.stderr[-3000:]
        interim = [file.name for file in (tmp_path / "stopped").glob("iter_*.pth")]
        assert interim == [f"iter_{iteration + 1}.pth"]
    assert_same(train(config, tmp_path / "stopped", resume=True), expected)


@pytest.mark.parametrize(
    "killed", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["killed", "finished"]
)
def test_a_signal_during_validation_saves_at_once(killed, tmp_path):
    """EMA weights are in the model at that time."""
    config = write_config(tmp_path, ema=True)
    expected = train(config, tmp_path / "uninterrupted")
    event = "sigterm_then_sigkill" if killed else "sigterm"
    failure = dict(event=event, iteration=2, stage="after_val_iter")
    done = train_with(config, tmp_path / "stopped", failure)
    assert done.returncode == (-signal.SIGKILL if killed else EXIT_STATUS), done.stderr[-3000:]
    output = done.stderr + done.stdout
    assert "iter_2.pth; completing the validation first" in output
    assert ("bbox_mAP" in output) != killed
    assert latest_checkpoint(tmp_path / "stopped").name == "iter_2.pth"
    assert_same(train(config, tmp_path / "stopped", resume=True), expected)


@pytest.mark.slow
def test_processes_agree_on_the_step(tmp_path):
    """One of two receives the signal; resumed with two processes too."""
    config = write_config(tmp_path, workers=1, accumulated=2)
    never = dict(event="sigterm", iteration=99)
    assert train_with(config, tmp_path / "expected", never, command=TORCHRUN).returncode == 0
    expected = torch.load(latest_checkpoint(tmp_path / "expected"), weights_only=True)

    work_dir, failure = tmp_path / "stopped", dict(event="sigterm", iteration=4, rank=1)
    done = train_with(config, work_dir, failure, command=TORCHRUN)
    assert done.returncode and f"exitcode  : {EXIT_STATUS}" in done.stderr, done.stderr[-3000:]
    assert "signal elsewhere: saved " in done.stderr + done.stdout
    assert latest_checkpoint(work_dir).name == "iter_6.pth"  # a step of the optimizer
    done = train_with(config, work_dir, never, "--resume", command=TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(torch.load(latest_checkpoint(work_dir), weights_only=True), expected)


def test_in_a_thread_signals_are_left_alone():
    """Such as that of a training by Ray: only the main thread can handle signals."""
    hook, runner = PreemptionHook(), Mock(hooks=[ResumableCheckpointHook()])
    hook.before_run(runner)
    with ThreadPoolExecutor() as pool:
        pool.submit(hook.before_train, runner).result()
    runner.logger.warning.assert_called_once_with("PreemptionHook has no effect in a thread")


# The second sample fills the pipe to the main process, which reads only the first.
PROGRAM = """
import os, time
from functools import partial
from torch.utils.data import DataLoader
from ropevit_mmdet.engine.hooks import preemption_hook as workers

workers.INTERVAL = 0.5
init = partial(workers.init_worker, ignored=[], num_workers=1, rank=0, seed=0)
batches = iter(DataLoader(range(9), num_workers=1, worker_init_fn=init,
                          collate_fn=lambda index: (os.getpid(), b"1" * 2**20)))
print(next(batches)[0], flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs a signal's sender")
def test_a_worker_with_a_full_pipe_ends_with_a_killed_main_process():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as main:
        worker = next(int(line) for line in main.stdout if line.strip().isdigit())
        main.kill()
    end = time.monotonic() + 20
    with suppress(OSError):  # the worker is gone
        while ") Z " not in Path(f"/proc/{worker}/stat").read_text():
            assert time.monotonic() < end, "the worker still exists"
            time.sleep(0.1)
