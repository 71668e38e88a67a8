"""Normalization layers and LayerScale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropevit_mmdet.weights.architectures import Arch


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a feature map, as in ViTDet (arXiv 2203.16527)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def norm_layer(arch: Arch) -> Callable[[int], nn.Module]:
    """The architecture's norm layer, as a function of the number of channels."""
    norm = nn.RMSNorm if arch.norm_layer_type == "RMSNorm" else nn.LayerNorm
    return partial(norm, eps=arch.norm_layer_eps)
