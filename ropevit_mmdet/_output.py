"""Files that appear together or not at all: written into a hidden directory, then moved."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MB = 2**20  # bytes


@contextmanager
def output_directory(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty directory whose files are moved to the same places below `out_dir` in the end.

    Files of the same names there are replaced, others stay. After an exception nothing is moved,
    and nothing is left behind. Raises ValueError as `check_output_directory`.
    """
    check_output_directory(out_dir)
    out_dir = Path(out_dir).resolve()
    # In a directory that is there: it may be a disk of its own, and what it lies in not writable.
    place = out_dir if out_dir.is_dir() else out_dir.parent
    partial = place / f".{out_dir.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            place = out_dir / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_output_directory(out_dir: str | os.PathLike[str]) -> None:
    """Raise ValueError for a directory that cannot be one, before any work is done for it."""
    out_dir = Path(out_dir).resolve()
    place = next(path for path in (out_dir, *out_dir.parents) if os.path.exists(path))
    if not place.is_dir():
        raise ValueError(f"cannot write into {out_dir}: {place} is a file, give another directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(
            f"cannot write into {out_dir}: {place} is not writable, give another directory"
        )


@contextmanager
def atomic_file(filepath: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file beside `filepath` to write into; flushed to the disk and renamed to that in the end.

    Raises OSError that says what there is, where the disk is full; a file of that name is then as
    it was.
    """
    path = Path(filepath)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as failure:
        # torch.save hides the system's error behind one of its own, of a position in the file.
        if (error := _system_error(failure)) is None:
            raise
        free = shutil.disk_usage(path.parent).free / MB
        raise OSError(
            error.errno,
            f"{error.strerror}: {path} was not written; its disk has {free:.1f} MB left; earlier "
            "files are whole",
        ) from failure
    finally:
        partial.unlink(missing_ok=True)


def _system_error(error: BaseException | None) -> OSError | None:
    """The error, or the one that it came of, that is the system's."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def is_running(process: int) -> bool:
    """Whether there is a process of that number, whoever's it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
