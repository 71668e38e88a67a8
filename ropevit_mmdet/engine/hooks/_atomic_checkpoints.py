"""Checkpoints on local disks that replace the previous file only once they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.runner.checkpoint
import mmengine.runner.runner
import torch

from ropevit_mmdet._output import atomic_file

# Runner calls its own imported name, the strategies of FlexibleRunner import it at each call.
_CALLERS = (mmengine.runner.runner, mmengine.runner.checkpoint)


@contextmanager
def atomic_checkpoints() -> Iterator[None]:
    """Within it, mmengine writes no checkpoint in place, and without its two copies in memory."""
    original = mmengine.runner.checkpoint.save_checkpoint

    def save_checkpoint(checkpoint: dict[str, Any], filename: str, **backend: Any) -> None:
        if any(backend.values()) or "://" in filename:  # not on a local disk
            return original(checkpoint, filename, **backend)
        with atomic_file(filename) as file:
            torch.save(checkpoint, file)

    for module in _CALLERS:
        module.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        for module in _CALLERS:
            module.save_checkpoint = original
