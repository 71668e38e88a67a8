"""One training per work dir: a second one is told so, before it writes anything."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ropevit_mmdet._output import check_output_directory, is_running

LOCK = ".train.lock"
# Data loader workers of a killed process keep its lock until they notice, every 5 s.
ORPHANS = 10  # seconds
# Where each launcher says which of the run's processes this one is.
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}


@contextmanager
def lock_work_dir(work_dir: str | os.PathLike[str], launcher: str = "none") -> Iterator[None]:
    """Holds the directory's lock, which the system gives back however this process ends.

    Of a distributed run, which has a launcher, the first process holds it for all. Where the file
    system knows no locks, a warning says so and the run continues.

    Raises:
        ValueError: another training holds it; says which, as far as that is known. Or the directory
            cannot be written into.
    """
    # Without a launcher of its own a run that was started several times is several runs.
    if launcher != "none" and os.environ.get(RANKS[launcher], "0") != "0":
        yield
        return
    check_output_directory(work_dir)
    directory = Path(work_dir)
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK, fallback_to_soft=False)  # a file would outlive a killed run
    try:
        _acquire(lock, directory)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, Timeout):
            raise ValueError(_taken(directory)) from error
        logging.getLogger(__name__).warning("%s cannot be locked: %s", directory, error)
        yield
        return
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        _holder_file(directory).write_text(json.dumps(holder) + "\n", encoding="utf-8")
        yield
    finally:
        _holder_file(directory).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, directory: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if _is_alive(_holder(directory)):
            raise
        lock.acquire(timeout=ORPHANS)


def _taken(directory: Path) -> str:
    holder = _holder(directory)
    who = "another process"
    if holder:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        who = f"process {holder['process']} on {holder['host']}, since {since},"
    return (
        f"{who} is training into {directory}: wait for it or end it, or give this run another "
        "--work-dir"
    )


def _holder(directory: Path) -> dict:
    """Who has noted down that it holds the lock; empty where nobody has, or no sense is in it."""
    try:
        holder = json.loads(_holder_file(directory).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fields = {"process": int, "host": str, "since": float}
    known = isinstance(holder, dict) and all(
        isinstance(holder.get(key), kind) for key, kind in fields.items()
    )
    # As the system has them: C's pid_t, and years of four digits.
    sane = known and 0 < holder["process"] < 2**31 and 0 <= holder["since"] < 2**37
    return holder if sane else {}


def _is_alive(holder: dict) -> bool:
    """Whether the noted process may be there: that of another machine always."""
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    return is_running(holder["process"])


def _holder_file(directory: Path) -> Path:
    return directory / f"{LOCK}.json"
