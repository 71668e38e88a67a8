"""A lock file that keeps a second training out of a work directory."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ropevit_mmdet._output import check_output_directory
from ropevit_mmdet.errors import UserError

LOCK = ".train.lock"
TIMEOUT = 10  # seconds; data loader workers of a killed process keep its lock for 5 s
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}


@contextmanager
def lock_work_dir(work_dir: str | os.PathLike[str], launcher: str = "none") -> Iterator[None]:
    """Locks a work directory in the first process of a run, until the process ends or is killed."""
    if launcher != "none" and os.environ.get(RANKS[launcher], "0") != "0":
        yield
        return
    check_output_directory(work_dir)
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(work_dir, LOCK), timeout=TIMEOUT, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        message = f"another process is training into {work_dir}: wait, or use another --work-dir"
        raise UserError(message) from error
    except (NotImplementedError, OSError) as error:  # such as Lustre mounted without `-o flock`
        logging.getLogger(__name__).warning("%s cannot be locked: %s", work_dir, error)
    try:
        yield
    finally:
        lock.release()
