"""MapFusion: several feature maps of a plain ViT as one, for backbones that are not fine-tuned.

After DINOv3's detector (arXiv 2508.10104; facebookresearch/dinov3, `eval/detection/models/
backbone.py` and `hub/detectors.py`): the last block of each quarter, a norm for each map, all maps
concatenated, one 1 x 1 projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from ropevit_mmdet.models.layers.norm import LayerNorm2d


class MapFusion(nn.Module):
    """Normalizes every map over its channels, joins the maps and projects to the last one's width.

    Args:
        in_channels: channels of every map; equal ones for 'sum'.
        mode: 'concat' or 'sum'.
    """

    def __init__(self, in_channels: Sequence[int], mode: str) -> None:
        super().__init__()
        self.mode = mode
        width = sum(in_channels) if mode == "concat" else in_channels[-1]
        self.norms = nn.ModuleList(LayerNorm2d(channels, eps=1e-6) for channels in in_channels)
        self.projection = nn.Conv2d(width, in_channels[-1], 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, in_channels[i], rows, columns] of one grid to [B, in_channels[-1], ...]."""
        normed = [norm(one) for norm, one in zip(self.norms, maps, strict=True)]
        joined = torch.cat(normed, dim=1) if self.mode == "concat" else reduce(torch.add, normed)
        return self.projection(joined)
