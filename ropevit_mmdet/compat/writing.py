"""Files that are whole or not there: mmengine 0.10 writes in place, and a checkpoint twice over.

It puts a checkpoint together in memory, twice its size, before the first byte is written. Here it
goes into the file as it is, and that gets its name when the disk has all of it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.runner.runner as mmengine_runner
import torch
from mmengine.fileio import LocalBackend, get_file_backend

MB = 2**20  # bytes
_save_elsewhere = mmengine_checkpoint.save_checkpoint


def install() -> None:
    """Take over mmengine's writing of local files. Idempotent."""
    LocalBackend.put = put_atomically
    mmengine_checkpoint.save_checkpoint = save_checkpoint  # of its strategies
    mmengine_runner.save_checkpoint = save_checkpoint


def save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: dict | None = None,
    backend_args: dict | None = None,
) -> None:
    """mmengine's function of that name; onto a disk of this machine without a copy in memory.

    Raises OSError as `whole_file` does.
    """
    local = file_client_args is None and isinstance(
        get_file_backend(filename, backend_args=backend_args), LocalBackend
    )
    if not local:
        return _save_elsewhere(checkpoint, filename, file_client_args, backend_args)
    with whole_file(filename) as file:
        torch.save(checkpoint, file)


def put_atomically(self: LocalBackend, obj: bytes, filepath: str | os.PathLike[str]) -> None:
    """Write `obj` as a `whole_file`, and raise as that does."""
    with whole_file(filepath) as file:
        file.write(obj)


@contextmanager
def whole_file(filepath: str | os.PathLike[str]) -> Iterator[BinaryIO]:
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
