"""Feature maps on disk, keyed by the content of weights and images."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


def content_key(settings: str, tensors: Iterable[Tensor]) -> str:
    """40 hex digits of SHA-256 over settings and the shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]


class FeatureCache:
    """Feature maps in `ROOT/KEY OF THE WEIGHTS/KEY OF THE IMAGE.safetensors`.

    When `max_bytes` of all files below `root` are reached, or a file cannot be written, no more is
    stored, and a warning is logged once.
    """

    def __init__(self, root: Path, weights: str, max_bytes: int) -> None:
        self.root, self.directory = root, root / weights
        self._stopped = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop(f"cannot be written to ({error})")
        self._free = max_bytes - sum(file.stat().st_size for file in root.glob("*/*.safetensors"))

    def read(self, key: str) -> list[Tensor] | None:
        """The feature maps [C, rows, columns] of an image; None if no complete file has them."""
        try:
            maps = load((self.directory / f"{key}.safetensors").read_bytes())
        except (OSError, SafetensorError):
            return None
        return [maps[str(i)] for i in range(len(maps))]

    def write(self, key: str, maps: Sequence[Tensor]) -> None:
        """Stores the feature maps of an image, unless the directory is full."""
        if self._stopped:
            return
        content = save({str(i): level.contiguous() for i, level in enumerate(maps)})
        self._free -= len(content) * get_world_size()  # other processes store as much
        if self._free < 0:
            self._stop("is full; raise max_gb, or remove the directories of other weights")
            return
        writer = f"{os.getpid()}.{threading.get_ident()}"  # others may write the same image
        partial = self.directory / f".{key}.{writer}.partial"
        try:
            partial.write_bytes(content)
            partial.replace(self.directory / f"{key}.safetensors")
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._stop(f"cannot be written to ({error})")

    def _stop(self, reason: str) -> None:
        self._stopped = True
        message = f"the feature cache {self.root} {reason}; other images are computed every time"
        MMLogger.get_current_instance().warning(message)
