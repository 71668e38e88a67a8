"""Files that are whole or not there: mmengine 0.10 writes in place, and a checkpoint twice over.

It puts a checkpoint together in memory, twice its size, before the first byte is written. Here it
goes into the file as it is, and that gets its name when the disk has all of it.
"""

import os
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.runner.runner as mmengine_runner
import torch
from mmengine.fileio import LocalBackend, get_file_backend

from ropevit_mmdet._output import atomic_file

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

    Raises OSError as `atomic_file` does.
    """
    local = file_client_args is None and isinstance(
        get_file_backend(filename, backend_args=backend_args), LocalBackend
    )
    if not local:
        return _save_elsewhere(checkpoint, filename, file_client_args, backend_args)
    with atomic_file(filename) as file:
        torch.save(checkpoint, file)


def put_atomically(self: LocalBackend, obj: bytes, filepath: str | os.PathLike[str]) -> None:
    """Write `obj` as a `atomic_file`, and raise as that does."""
    with atomic_file(filepath) as file:
        file.write(obj)
