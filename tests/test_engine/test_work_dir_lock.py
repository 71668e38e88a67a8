"""The lock of a work dir."""

import errno
from unittest.mock import Mock

import pytest
from filelock import FileLock

from ropevit_mmdet.engine import work_dir_lock
from ropevit_mmdet.engine.work_dir_lock import LOCK, lock_work_dir


def test_a_second_run_is_refused_but_not_a_process_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(work_dir_lock, "TIMEOUT", 0.1)
    monkeypatch.setenv("RANK", "1")
    with FileLock(tmp_path / LOCK):
        with lock_work_dir(tmp_path, "pytorch"):
            pass
        with pytest.raises(ValueError, match="is training into"), lock_work_dir(tmp_path):
            pytest.fail("both have the lock")
    with lock_work_dir(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    """Such as Lustre mounted without `-o flock`."""
    unsupported = Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented"))
    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock_work_dir(tmp_path):
        pass
    assert unsupported.called and "cannot be locked" in caplog.text
