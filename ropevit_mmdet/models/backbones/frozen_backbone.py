"""FrozenBackbone: any backbone with its pretrained weights, its features cached on disk.

A frozen probe (as in Perception Encoder, arXiv 2504.13181, section 5) runs the same images through
the same weights in every epoch. Without augmentation, once is enough.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import ropevit_mmdet
from ropevit_mmdet.models.layers._tracing import is_traced
from ropevit_mmdet.weights.architectures import check_values


@MODELS.register_module()
class FrozenBackbone(BaseModule):
    """Runs a backbone in eval mode and without gradients.

    Parameters have the same names as without the wrapper, so a checkpoint of a probe fits the
    detector with the plain backbone.

    Args:
        backbone: config of any registered backbone; its `init_cfg` names the weights.
        cache_dir: directory for feature maps, keyed by package version, weights and images; None:
            no cache. An augmented image is another image, so only data that stays the same in every
            epoch gains.
        max_gb: GB (10^9 bytes), limit of the directory; a full cache is read, but not written.

    Raises:
        UserError: `max_gb` is not positive.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        max_gb: float = 10.0,
    ) -> None:
        super().__init__()
        check_values((max_gb > 0, "max_gb", "positive", max_gb))
        inner: nn.Module = MODELS.build(backbone).requires_grad_(False)
        # Not a submodule, whose names would have a prefix: its parts are those of the wrapper.
        self.__dict__["backbone"] = inner
        for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            setattr(self, registry, getattr(inner, registry))
        self._own = (*inner._parameters, *inner._buffers)
        self._numel = sum(tensor.numel() for tensor in self._tensors())
        self._settings = repr({key: backbone[key] for key in sorted(backbone) if key != "init_cfg"})
        self._directory = cache_dir
        self._max_bytes = int(max_gb * 1e9)
        # The cache, and address and version of every weight that its files belong to.
        self._cache: tuple[FeatureCache, list[tuple[int, int]]] | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] to the backbone's feature maps [B, C, rows, columns]."""
        # FSDP replaces parameters of the wrapper by plain attributes.
        views = {name: vars(self)[name] for name in self._own if name in vars(self)}
        self.backbone.__dict__.update(views)
        with torch.no_grad():
            cache = None if self._directory is None or is_traced() else self._feature_cache()
            return tuple(self.backbone(images)) if cache is None else self._cached(cache, images)

    def init_weights(self) -> None:
        """As the backbone itself, unless `skip_init` has marked it."""
        if not hasattr(self.backbone, "init_weights") or getattr(self.backbone, "is_init", False):
            return
        record = "_params_init_info"  # mmengine's, of the whole detector
        if record in vars(self):
            setattr(self.backbone, record, vars(self)[record])
        self.backbone.init_weights()
        self.backbone.__dict__.pop(record, None)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """The backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def _feature_cache(self) -> FeatureCache | None:
        """The cache of the present weights, which may have been loaded or moved since."""
        tensors = self._tensors()
        plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        if not plain or sum(tensor.numel() for tensor in tensors) != self._numel:
            warnings.warn("FSDP shards the backbone: its features are not cached", stacklevel=4)
            return None
        weights = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        known = self._cache  # read once: threads share the model
        if known is None or known[1] != weights:
            assert self._directory is not None  # of `forward`
            key = content_key(f"{ropevit_mmdet.__version__} {self._settings}", tensors)
            known = FeatureCache(Path(self._directory), key, self._max_bytes), weights
            self._cache = known
        return known[0]

    def _cached(self, cache: FeatureCache, images: Tensor) -> tuple[Tensor, ...]:
        """Reads the features of known images, and computes those of the others in one batch."""
        device = images.device.type
        half = str(torch.get_autocast_dtype(device)) * torch.is_autocast_enabled(device)
        keys = [content_key(f"{device} {half}", [image]) for image in images]
        maps = [cache.read(key) for key in keys]
        missing = [i for i, levels in enumerate(maps) if levels is None]
        if missing:
            computed = self.backbone(images[missing])
            for row, i in enumerate(missing):
                maps[i] = levels = [level[row].cpu() for level in computed]
                cache.write(keys[i], levels)
        return tuple(torch.stack(level).to(images.device) for level in zip(*maps, strict=True))


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


def content_key(settings: str, tensors: Iterable[Tensor]) -> str:
    """40 hex digits of SHA-256 over settings and the shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]
