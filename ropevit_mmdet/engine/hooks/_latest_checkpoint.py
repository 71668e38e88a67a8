"""Finds the checkpoint that a run resumes from."""

import logging
import os
import re
from pathlib import Path

from mmengine.logging import print_log

from ropevit_mmdet.compat.checkpoint import verify_archive

_NAME = re.compile(r"(iter|epoch)_\d+\.pth")  # not best_*.pth: these have no optimizer


def latest_checkpoint(work_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the checkpoint that `last_checkpoint` names, or the newest that is intact."""
    pointer = Path(work_dir, "last_checkpoint")
    named = Path(pointer.read_text(errors="replace").strip() if pointer.is_file() else "")
    files = [p for p in Path(work_dir).glob("*.pth") if p.is_file() and _NAME.fullmatch(p.name)]
    files.sort(key=os.path.getmtime, reverse=True)
    # The work dir may have moved since, or checkpoints may have a directory of their own.
    for path in dict.fromkeys([Path(work_dir, named.name), named, *files]):
        if path.is_file():
            if _is_intact(path):
                return path
            print_log(f"skipping the corrupted checkpoint {path}", "current", logging.WARNING)
    return None


def _is_intact(path: Path) -> bool:
    """Whether a file of torch's zip format is complete and its checksums are right."""
    try:
        verify_archive(path)
        return True
    except Exception:  # zipfile raises a dozen types on corrupted files
        return False
