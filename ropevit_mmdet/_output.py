"""Files and directories of results that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ropevit_mmdet.errors import UserError

MB = 2**20  # bytes


@contextmanager
def output_directory(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty directory that becomes `out_dir` at the end; its files move into one there.

    Files of the same names are replaced, others stay. After an exception nothing is moved.
    """
    check_output_directory(out_dir)
    out_dir = Path(out_dir).resolve()
    # Within `out_dir` if it exists: it may be a mounted disk, and its parent not writable.
    parent = out_dir if out_dir.is_dir() else out_dir.parent
    partial = parent / f".{out_dir.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process; in containers ids repeat
    try:
        partial.mkdir(parents=True)
        yield partial
        if not out_dir.exists():
            partial.rename(out_dir)
            return
        files = [path for path in partial.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: -len(path.parts)):  # a summary at the top: last
            target = out_dir / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_output_directory(out_dir: str | os.PathLike[str]) -> None:
    """Raises `UserError` if no files can be written into a directory that may not exist yet."""
    out_dir = Path(out_dir).resolve()
    existing = next(path for path in (out_dir, *out_dir.parents) if os.path.exists(path))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "not writable" if existing.is_dir() else "a file"
        raise UserError(f"cannot write into {out_dir}: {existing} is {problem}")


@contextmanager
def atomic_file(filepath: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a hidden file that is flushed to the disk and renamed to `filepath` at the end.

    After an exception nothing is left of it, and a previous file of that name is unchanged. What
    is no regular file, such as `/dev/stdout`, is written to; of a link the file is replaced.
    """
    path = Path(filepath)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as failure:
        # torch.save raises a RuntimeError about a position in the file on top of the system's.
        error = failure if isinstance(failure, OSError) else failure.__context__
        if not isinstance(error, OSError):
            raise
        free = shutil.disk_usage(path.parent).free / MB
        message = f"{path} was not written; {free:.1f} MB left; earlier files are intact"
        raise OSError(error.errno, f"{error.strerror}: {message}") from failure
    finally:
        partial.unlink(missing_ok=True)
