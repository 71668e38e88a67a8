"""The upscaling block of EoMT (arXiv 2503.19108; reference: `models/scale_block.py`)."""

from __future__ import annotations

from torch import Tensor, nn

from ropevit_mmdet.models.layers.norm import LayerNorm2d


class ScaleBlock(nn.Module):
    """Doubles rows and columns: deconvolution, GELU, depthwise convolution, layer norm.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, columns] to [B, C, 2 rows, 2 columns]."""
        return self.norm(self.conv2(self.act(self.conv1(x))))
