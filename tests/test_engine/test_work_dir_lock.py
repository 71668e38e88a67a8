"""The lock of a work dir, against a process that has it."""

import errno
import subprocess
import sys
from unittest.mock import Mock

import pytest

from ropevit_mmdet.engine import work_dir_lock
from ropevit_mmdet.engine.work_dir_lock import LOCK, lock_work_dir

HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process that has the lock of a directory."""
    monkeypatch.setattr(work_dir_lock, "TIMEOUT", 0.1, raising=False)
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_but_not_a_process_of_the_same_run(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with lock_work_dir(tmp_path, "pytorch"):
        pass
    with pytest.raises(ValueError, match="is training into"), lock_work_dir(tmp_path):
        pytest.fail("both have the lock")


def test_a_killed_run_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock_work_dir(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    """Such as Lustre mounted without `-o flock`."""
    unsupported = Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented"))
    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock_work_dir(tmp_path):
        pass
    assert unsupported.called and "cannot be locked" in caplog.text
