"""Patch embedding: images to a grid of patch tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropevit_mmdet.models.layers._cpu import conv_with_spare_columns
from ropevit_mmdet.models.layers.norm import LayerNorm2d
from ropevit_mmdet.weights.architectures import Arch


class PatchEmbed(nn.Module):
    """Embeds the patches of images, of `patch_size` pixels, which may differ from `arch`'s."""

    def __init__(self, arch: Arch, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        if arch.stem_type == "hmlp":
            self.proj: nn.Module = _hmlp_stem(arch)
        else:
            self.proj = StridedConv(
                3, arch.hidden_dim, patch_size, stride=patch_size, bias=not arch.pre_norm
            )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], padded at the right and bottom with zeros to complete patches, to a grid.

        Returns:
            [B, rows, columns, C].
        """
        height, width = images.shape[-2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.proj(images).permute(0, 2, 3, 1)  # [B, rows, columns, C]


class StridedConv(nn.Conv2d):
    """`nn.Conv2d` for patches: a matrix product on a GPU.

    cuDNN (9.19, PyTorch 2.11) has no fast kernel for patches that do not overlap, and rounds
    float32 to TF32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W'], as `nn.Conv2d`."""
        if x.device.type == "cuda" and self._is_patchify(x):
            return self.as_matmul(x)
        return conv_with_spare_columns(super().forward, self, x)

    def as_matmul(self, x: Tensor) -> Tensor:
        """The same as a matrix product, for patches that divide the input and do not overlap."""
        height, width = self.kernel_size
        patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [B, rows, columns, C h w]
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def _is_patchify(self, x: Tensor) -> bool:
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, self.padding)
        divides = all(s == k and p == 0 and side % k == 0 for side, k, s, p in sides)
        return divides and self.groups == 1


def resample_patch_kernel(weight: Tensor, patch_size: int) -> Tensor:
    """Resamples a patch kernel to another patch size, by FlexiViT's pseudoinverse.

    The products of the new kernel with bilinearly resized patches equal those of the old kernel
    with the patches themselves, exactly if patches grow. `docs/parity.md` compares it with the
    bicubic resizing of EVA (arXiv 2211.07636). Paper: FlexiViT, arXiv 2212.08013.

    Args:
        weight: [C, 3, p, p].
        patch_size: pixels.

    Returns:
        [C, 3, patch_size, patch_size], in the dtype of `weight`; `weight` itself at its own size.
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    pixels = torch.eye(old, dtype=torch.float64, device=weight.device)[None, None]
    resize = F.interpolate(pixels, size=(patch_size, old), mode="bilinear", antialias=True)[0, 0]
    inverse = torch.linalg.pinv(resize).T  # [new, old], the same for rows and columns
    return (inverse @ weight.double() @ inverse.T).to(weight.dtype)


def _hmlp_stem(arch: Arch) -> nn.Sequential:
    """Patches of 16 pixels in steps of 4 x 2 x 2 (hMLP, arXiv 2203.09795)."""
    norm = nn.BatchNorm2d if arch.stem_norm_layer_type == "BatchNorm2d" else LayerNorm2d
    dim, inner = arch.hidden_dim, arch.hidden_dim // 4
    return nn.Sequential(
        StridedConv(3, inner, 4, stride=4),
        norm(inner),
        nn.GELU(),
        StridedConv(inner, inner, 2, stride=2),
        norm(inner),
        nn.GELU(),
        StridedConv(inner, dim, 2, stride=2),
        norm(dim),
    )
