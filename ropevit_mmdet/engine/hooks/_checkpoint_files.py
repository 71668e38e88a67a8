"""Checkpoint files: the one that a run resumes from, and writing that replaces complete files."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint
import mmengine.runner.runner
import torch
from mmengine.logging import print_log

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.compat.checkpoint import verify_archive

_NAME = re.compile(r"(iter|epoch)_\d+\.pth")  # not best_*.pth: these have no optimizer
# Runner calls its own imported name, the strategies of FlexibleRunner import it at each call.
_CALLERS = (mmengine.runner.runner, mmengine.runner.checkpoint)


def latest_checkpoint(work_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the checkpoint that `last_checkpoint` names, or the newest that is intact."""
    pointer = Path(work_dir, "last_checkpoint")
    named = Path(pointer.read_text(errors="replace").strip() if pointer.is_file() else "")
    files = [p for p in Path(work_dir).glob("*.pth") if p.is_file() and _NAME.fullmatch(p.name)]
    files.sort(key=os.path.getmtime, reverse=True)
    # The work dir may have moved since, or checkpoints may have a directory of their own.
    for path in dict.fromkeys([Path(work_dir, named.name), named, *files]):
        if path.is_file():
            try:
                verify_archive(path)
                return path
            except Exception:  # zipfile raises a dozen types on corrupted files
                print_log(f"skipping the corrupted checkpoint {path}", "current", logging.WARNING)
    return None


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
