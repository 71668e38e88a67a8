"""FrozenBackbone: any backbone as it was pretrained, its maps kept on disk from epoch to epoch.

A frozen probe (as in Perception Encoder, arXiv 2504.13181, section 5) runs the same images
through the same weights in every epoch. Where no augmentation changes them, once is enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

_SUFFIX, _PARTIAL = ".maps", ".partial"
_COUNT, _LOCK = ".bytes", ".lock"
_ABANDONED = 3600  # seconds; a file is written in far less
_TIMEOUT = 10  # seconds that the lock is waited for: longer than an image takes to be written


@MODELS.register_module()
class FrozenBackbone(BaseModule):
    """Runs a backbone in eval mode and without gradients.

    Its parameters are called as they are without the wrapper, so a checkpoint of a probe fits the
    detector with the plain backbone.

    Args:
        backbone: config of any registered backbone; its ``init_cfg`` names the weights.
        cache_dir: directory where maps are kept, by weights and images; None for nowhere. An image
            that is augmented otherwise is another image: only data that does not change from
            epoch to epoch gains.
        max_gb: GB (10^9 bytes) that the directory may hold, by all processes that share it; when it is
            full nothing more is kept.

    Raises:
        ValueError: ``max_gb`` is not positive.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        max_gb: float = 10.0,
    ) -> None:
        super().__init__()
        if not max_gb > 0:
            raise ValueError(f"max_gb must be positive, got {max_gb!r}")
        self.backbone: nn.Module = MODELS.build(backbone)
        self.backbone.requires_grad_(False)
        self._settings = repr({key: backbone[key] for key in sorted(backbone) if key != "init_cfg"})
        self._directory = None if cache_dir is None else Path(cache_dir)
        self._max_bytes = int(max_gb * 1e9)
        self._cache: MapCache | None = None
        self._weights: list[tuple[int, int]] = []  # of the cache's key: place and version of each
        self._register_state_dict_hook(_without_wrapper)
        self.register_load_state_dict_pre_hook(_with_wrapper)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps of the backbone, as it returns them: a tuple of [B, C, rows, columns].

        Args:
            images: [B, 3, H, W].
        """
        with torch.no_grad():
            if self._directory is None:
                return tuple(self.backbone(images))
            tensors = self.backbone.state_dict().values()
            weights = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
            if weights != self._weights:  # loaded since, or moved to another device
                key = _digest(self._settings, tensors)
                self._cache = MapCache(self._directory, key, self._max_bytes)
                self._weights = weights
            return self._cached(images)

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.backbone.eval()
        return self

    def _cached(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of images seen before are read; those of the others are computed in one batch."""
        device = images.device.type
        half = str(torch.get_autocast_dtype(device)) * torch.is_autocast_enabled(device)
        keys = [_digest(f"{device} {half}", [image]) for image in images]
        found = [self._cache.read(key) for key in keys]
        missing = [i for i, maps in enumerate(found) if maps is None]
        if missing:
            whole = len(missing) == len(images)
            computed = self.backbone(images if whole else images[missing])
            for row, i in enumerate(missing):
                found[i] = [level[row].cpu() for level in computed]
                self._cache.write(keys[i], found[i])
        return tuple(torch.stack(level).to(images.device) for level in zip(*found, strict=True))


class MapCache:
    """Maps on disk under ``<root>/<key of the weights>/<key of the image>.maps``.

    Several processes may share a directory: files are written beside and renamed, and what all of
    them have written is counted in ``<root>/.bytes``, under a lock that they take in turns. So the
    limit holds for all together, to the byte; on a file system that knows no locks, images that
    are written at the same moment may count as one. Files that are removed meanwhile count until a
    cache is opened on the directory again.

    What a killed process left behind is removed. In a directory that cannot be made, on a disk that is
    full, or breaks down, nothing more is kept.

    Args:
        root: the directory whose size is limited.
        weights: key of what computes the maps.
        max_bytes: of all maps below ``root``.
    """

    def __init__(self, root: Path, weights: str, max_bytes: int) -> None:
        self.root, self.directory = root, root / weights
        self.max_bytes = max_bytes
        self.stopped = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                self._note(self._counted())
        except OSError as error:  # no reason to end a training
            self._stop(f"cannot be written to ({error})", "the run continues without")

    def read(self, key: str) -> list[Tensor] | None:
        """The maps [C, rows, columns] of an image, or None if they are not kept (or truncated)."""
        path = self._path(key)
        try:
            content = bytearray(path.read_bytes())  # of its own: tensors on it may be written to
        except FileNotFoundError:
            return None
        except OSError as error:
            self._stop(f"cannot be read ({error})", "the run continues without")
            return None
        try:
            return _unpacked(content)
        except (ValueError, AttributeError, TypeError, RuntimeError):
            MMLogger.get_current_instance().warning(f"{path} is damaged: computed again")
            return None

    def write(self, key: str, maps: Sequence[Tensor]) -> None:
        """Keeps the maps of an image, unless the directory is full."""
        if self.stopped:
            return
        content = _packed(maps)
        try:
            with _locked(self.root):
                held = self._noted() + len(content)
                if held <= self.max_bytes:
                    self._note(held)
                    _put(self._path(key), content)
        except OSError as error:
            self._stop(f"cannot be written to ({error})", "the run continues without")
            return
        if held > self.max_bytes:
            self._stop(
                f"is full ({self.max_bytes / 1e9:.3g} GB)",
                "raise max_gb, or remove the directories of weights that are no longer used",
            )

    def _counted(self) -> int:
        """The bytes of all maps below the root; what was abandoned is removed."""
        total = 0
        for directory, _, names in os.walk(self.root):
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # another process renamed it meanwhile
                    status = path.stat()
                    if path.suffix == _SUFFIX:
                        total += status.st_size
                    elif path.suffix == _PARTIAL and time.time() - status.st_mtime > _ABANDONED:
                        path.unlink()
        return total

    def _noted(self) -> int:
        try:
            return int((self.root / _COUNT).read_bytes())
        except (FileNotFoundError, ValueError):
            return self._counted()

    def _note(self, total: int) -> None:
        _put(self.root / _COUNT, b"%d" % total)

    def _stop(self, finding: str, fix: str) -> None:
        if self.stopped:
            return
        self.stopped = True
        MMLogger.get_current_instance().warning(
            f"the cache of maps in {self.root} {finding}: maps of further images are "
            f"computed every time; {fix}"
        )

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Holds the lock of a directory; continues without where there are no locks, or nobody lets go."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NotImplementedError, OSError):
            lock = FileLock(root / _LOCK, fallback_to_soft=False)
            stack.enter_context(lock.acquire(timeout=_TIMEOUT, poll_interval=0.002))
        yield


def _put(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _digest(settings: str, tensors: Iterable[Tensor]) -> str:
    """40 hex digits of SHA-256 over settings, shapes, dtypes and every byte of tensors."""
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()[:40]


def _packed(maps: Sequence[Tensor]) -> bytes:
    """A line of JSON, [dtype, shape] per map, and their bytes: read in a third of the time that
    torch.load takes."""
    header = [[str(level.dtype).removeprefix("torch."), list(level.shape)] for level in maps]
    parts = [_bytes_of(level).tobytes() for level in maps]
    return b"\n".join((json.dumps(header).encode(), b"".join(parts)))


def _unpacked(content: bytearray) -> list[Tensor]:
    start = content.find(b"\n") + 1
    maps = []
    for name, shape in json.loads(content[:start]):
        dtype, count = getattr(torch, name), math.prod(shape)
        maps.append(torch.frombuffer(content, dtype=dtype, count=count, offset=start).view(shape))
        start += count * dtype.itemsize
    return maps


def _bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _without_wrapper(module: nn.Module, state: dict, prefix: str, _: Any) -> None:
    """Saves `backbone.patch_embed...`, not `backbone.backbone.patch_embed...`."""
    inner = f"{prefix}backbone."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_wrapper(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}backbone.{key.removeprefix(prefix)}"] = state.pop(key)
