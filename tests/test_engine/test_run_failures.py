"""Failures from outside a run leave the last checkpoint intact, an error message, and no hang."""

import re
import signal
import time

from ropevit_mmdet.engine import latest_checkpoint
from tests.fault_injection import assert_same, train, train_two_with, train_with, write_config


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """Writing fails in the middle of the second checkpoint."""
    config, work_dir = write_config(tmp_path), tmp_path / "run"
    done = train_with(config, work_dir, dict(event="disk_full", iteration=4))
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "File too large" in line and "iter_6.pth was not written" in line
    assert "MB left; earlier files are intact" in line
    assert {file.name for file in work_dir.iterdir() if "iter" in file.name} == {"iter_3.pth"}
    assert latest_checkpoint(work_dir).name == "iter_3.pth"
    assert_same(train(config, work_dir, resume=True), train(config, tmp_path / "uninterrupted"))


def test_a_killed_worker_ends_the_run(tmp_path):
    config = write_config(tmp_path, workers=2)
    start = time.monotonic()
    done = train_with(config, tmp_path / "run", dict(event="worker_killed", iteration=4))
    assert done.returncode == 2, done.stderr[-3000:]
    assert re.search("error: data loader worker .* memory ran out", done.stderr)
    assert time.monotonic() - start < 60
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


def test_a_killed_process_ends_the_other(tmp_path):
    """Without torchrun, which would end it too."""
    config = write_config(tmp_path)
    failure = dict(event="sigkill", iteration=4, rank=1)
    other, killed = train_two_with(config, tmp_path / "run", failure)
    assert killed.returncode == -signal.SIGKILL and other.returncode == 1, other.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"


def test_nan_in_one_process_stops_all(tmp_path):
    config = write_config(
        tmp_path, more="default_hooks.update(non_finite=dict(type='NonFiniteGuard'))\n"
    )
    failure = dict(event="weights_nan", iteration=4, rank=1)
    done = train_two_with(config, tmp_path / "run", failure)
    assert [process.returncode for process in done] == [2, 2], done[0].stderr[-3000:]
    lines = "".join(process.stderr for process in done).splitlines()
    (line,) = [line for line in lines if line.startswith("error: iteration 5")]
    assert re.search(r"--resume continues from \S+iter_3\.pth", line)
    assert "process 1: loss_" in line
    assert latest_checkpoint(tmp_path / "run").name == "iter_3.pth"
