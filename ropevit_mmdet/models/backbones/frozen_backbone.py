"""FrozenBackbone: any backbone with its pretrained weights, its features cached on disk.

A frozen probe (as in Perception Encoder, arXiv 2504.13181, section 5) runs the same images through
the same weights in every epoch. Without augmentation, once is enough.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ropevit_mmdet.models.backbones._feature_cache import FeatureCache, content_key
from ropevit_mmdet.weights.architectures import check_values


@MODELS.register_module()
class FrozenBackbone(BaseModule):
    """Runs a backbone in eval mode and without gradients.

    Parameters have the same names as without the wrapper, so a checkpoint of a probe fits the
    detector with the plain backbone.

    Args:
        backbone: config of any registered backbone; its `init_cfg` names the weights.
        cache_dir: directory for feature maps, keyed by weights and images; None: no cache. An
            augmented image is another image, so only data that stays the same in every epoch gains.
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
        self.backbone: nn.Module = MODELS.build(backbone)
        self.backbone.requires_grad_(False)
        self._settings = repr({key: backbone[key] for key in sorted(backbone) if key != "init_cfg"})
        self._directory = cache_dir
        self._max_bytes = int(max_gb * 1e9)
        self._cache: FeatureCache | None = None
        self._weights: list[tuple[int, int]] = []  # address and version of every cached weight
        self._register_state_dict_hook(_remove_wrapper)
        self.register_load_state_dict_pre_hook(_add_wrapper)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] to the backbone's feature maps [B, C, rows, columns]."""
        with torch.no_grad():
            if self._directory is None:
                return tuple(self.backbone(images))
            tensors = self.backbone.state_dict().values()
            weights = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
            if weights != self._weights:  # loaded, or moved to another device
                key = content_key(self._settings, tensors)
                self._cache = FeatureCache(Path(self._directory), key, self._max_bytes)
                self._weights = weights
            return self._cached(images)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """The backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _cached(self, images: Tensor) -> tuple[Tensor, ...]:
        """Reads the features of known images, and computes those of the others in one batch."""
        assert self._cache is not None  # of `forward`
        device = images.device.type
        half = str(torch.get_autocast_dtype(device)) * torch.is_autocast_enabled(device)
        keys = [content_key(f"{device} {half}", [image]) for image in images]
        maps = [self._cache.read(key) for key in keys]
        missing = [i for i, levels in enumerate(maps) if levels is None]
        if missing:
            computed = self.backbone(images[missing])
            for row, i in enumerate(missing):
                maps[i] = levels = [level[row].cpu() for level in computed]
                self._cache.write(keys[i], levels)
        return tuple(torch.stack(level).to(images.device) for level in zip(*maps, strict=True))


def _remove_wrapper(module: nn.Module, state: dict, prefix: str, _: Any) -> None:
    """Saves `backbone.patch_embed...`, not `backbone.backbone.patch_embed...`."""
    inner = f"{prefix}backbone."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _add_wrapper(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}backbone.{key.removeprefix(prefix)}"] = state.pop(key)
