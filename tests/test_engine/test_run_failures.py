"""What ends a run from outside leaves the last checkpoint whole, an error said, and no hang."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
import torch

from ropevit_mmdet.engine import work_dir_lock
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import LOCK, RANKS, lock_work_dir
from ropevit_mmdet.errors import user_message
from tests.fault_injection import (
    ITERATIONS,
    TORCHRUN,
    assert_same,
    prepared,
    train,
    train_two_with,
    train_with,
)
from tests.test_cli.test_tools import load_tool

SETTINGS = dict(loop=ITERATIONS, workers=0, accumulated=1, ema=False)
# Holds the lock of a directory, with a child that lives on as a data loader's worker may.
HOLDER = """
import os, runpy, sys, time
lock = runpy.run_path(sys.argv[1])["lock_work_dir"]
with lock(sys.argv[2]):
    if sys.argv[3] == "orphan" and os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    """Writing stops in the middle of the second checkpoint, as the system has it."""
    config = prepared(tmp_path, **SETTINGS)
    done = train_with(config, tmp_path / "run", dict(kind="disk_full", iteration=4))
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "File too large" in line and "iter_6.pth was not written" in line
    assert "MB left; earlier files are whole" in line
    left = {file.name for file in (tmp_path / "run").iterdir() if "iter" in file.name}
    assert left == {"iter_3.pth"} and latest_checkpoint(tmp_path / "run").name == "iter_3.pth"
    assert_same(train(config, tmp_path / "run", resume=True), train(config, tmp_path / "whole"))


def test_a_dead_worker_ends_the_run(tmp_path):
    config = prepared(tmp_path, **(SETTINGS | dict(workers=2)))
    start = time.monotonic()
    done = train_with(config, tmp_path / "run", dict(kind="worker_killed", iteration=4))
    assert done.returncode == 2, done.stderr[-3000:]
    assert re.search("was ended by (Killed|the system): mostly memory ran out", done.stderr)
    assert time.monotonic() - start < 60
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


def test_a_lost_process_ends_the_other(tmp_path):
    """Of itself: torchrun would end it too."""
    config = prepared(tmp_path, **SETTINGS)
    failure = dict(kind="killed", iteration=4, rank=1)
    left, lost = train_two_with(config, tmp_path / "run", failure)
    assert lost.returncode == -signal.SIGKILL and left.returncode == 1, left.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


@pytest.mark.slow
def test_a_lost_process_ends_the_others_by_torchrun(tmp_path):
    config = prepared(tmp_path, **SETTINGS)
    start = time.monotonic()
    failure = dict(kind="killed", iteration=4, rank=1)
    done = train_with(config, tmp_path / "run", failure, command=TORCHRUN)
    assert done.returncode == 1 and "SIGKILL" in done.stderr, done.stderr[-3000:]
    assert time.monotonic() - start < 90
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_process_with_broken_numbers_stops_all(rank, tmp_path):
    config = prepared(tmp_path, **SETTINGS)
    config.write_text(
        config.read_text() + "default_hooks.update(non_finite=dict(type='NonFiniteGuard'))\n"
    )
    failure = dict(kind="weights_broken", iteration=4, rank=rank)
    done = train_two_with(config, tmp_path / "run", failure)
    assert [process.returncode for process in done] == [2, 2], done[0].stderr[-3000:]
    said = "".join(process.stderr for process in done).splitlines()
    (line,) = [line for line in said if line.startswith("error: iteration 5")]
    assert "iter_3.pth, and --resume continues" in line and f"process {rank}: loss_" in line
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


# ---- two runs into one directory


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a directory, and ends it in the end."""
    started = []

    def start(kind="alone"):
        argv = [sys.executable, "-c", HOLDER, work_dir_lock.__file__, str(tmp_path), kind]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_told_who_is_there(tmp_path, holder):
    process = holder()
    with pytest.raises(ValueError, match="wait for it or end it") as error, lock_work_dir(tmp_path):
        pytest.fail("both hold it")
    assert f"process {process.pid} on " in str(error.value) and user_message(error.value)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["alone", "orphan"])
def test_a_killed_run_leaves_no_lock(tmp_path, holder, kind):
    process = holder(kind)
    process.kill()
    process.wait()
    assert (tmp_path / f"{LOCK}.json").exists()  # what it noted is still there
    with lock_work_dir(tmp_path):
        assert str(os.getpid()) in (tmp_path / f"{LOCK}.json").read_text()
    assert not (tmp_path / f"{LOCK}.json").exists()
    with lock_work_dir(tmp_path):
        pass


NOTE = '{"process": %s, "host": "h", "since": %s}'


@pytest.mark.parametrize(
    "noted",
    ["", "{}", "[]", '{"process": "x"}', "\x00"]
    + [NOTE % (10**30, 1.0), NOTE % (0, 1.0), NOTE % (1, 1e300), NOTE % (1, "NaN")],
)
def test_notes_without_sense(tmp_path, holder, noted, monkeypatch):
    holder()
    (tmp_path / f"{LOCK}.json").write_text(noted)
    monkeypatch.setattr(work_dir_lock, "ORPHANS", 0.1)
    with pytest.raises(ValueError, match="another process is tr"), lock_work_dir(tmp_path):
        pytest.fail("both hold it")


@pytest.mark.parametrize("launcher", RANKS)
def test_processes_of_one_run_do_not_lock_each_other_out(tmp_path, holder, launcher, monkeypatch):
    """Without a launcher they are several runs, as of `srun -n 2 python tools/train.py`."""
    holder()
    monkeypatch.setenv(RANKS[launcher], "1")
    with lock_work_dir(tmp_path, launcher):
        pass
    with pytest.raises(ValueError, match="is training into"), lock_work_dir(tmp_path):
        pytest.fail("both hold it")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    """As Lustre without `-o flock`. A file in the place of a lock would outlive a killed run."""
    unsupported = Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented"))
    monkeypatch.setattr("fcntl.flock", unsupported)
    for _ in range(2):
        with lock_work_dir(tmp_path):
            pass
    assert unsupported.called and caplog.text.count("cannot be locked") == 2
    assert "Function not implemented" in caplog.text


@pytest.mark.parametrize("tool", ["train", "demo"])
def test_tools_take_the_lock_before_they_write(tool, tmp_path, holder, capsys):
    config = prepared(tmp_path, **SETTINGS)
    process = holder()
    before = sorted(tmp_path.rglob("*"))
    argv = [str(config)] if tool == "train" else ["--config", str(config)]
    with pytest.raises(SystemExit) as left:
        load_tool(tool).main([*argv, "--work-dir", str(tmp_path)])
    assert left.value.code == 2
    assert f"error: process {process.pid} on " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


# ---- what is said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DataLoader worker (pid 71) is killed by signal: Killed. ", "71 was ended by Killed"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", "7 was ended by Bus"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "12, 13 was ended by the system"),
    ],
)
def test_dead_workers_in_words(text, words):
    assert words in user_message(RuntimeError(text))


def test_a_full_disk_elsewhere_in_words():
    assert "No space left" in user_message(OSError(28, "No space left on device", "vis_data"))
    assert user_message(OSError(13, "Permission denied")) is None


def test_torch_still_says_it_like_this():
    """The messages above are torch's: it must not change them unnoticed."""
    loader = torch.utils.data.DataLoader(_Dies(), num_workers=1)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) \d+\) exited|is killed"):
        next(iter(loader))


class _Dies(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), 9)
