"""Patch kernels at another patch size: 14 -> 16 keeps a grid while images grow.

Papers: FlexiViT, arXiv 2212.08013; EVA, arXiv 2211.07636 (``interpolate_patch_14to16.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_patch_kernel(weight: Tensor, patch_size: int, method: str = "pinv") -> Tensor:
    """A patch kernel [C, 3, p, p] for images that are scaled as the patch is.

    'pinv' (FlexiViT, arXiv 2212.08013) solves for the kernel whose products with bilinearly
    resized patches are those of the old kernel with the patches themselves, exactly so where
    patches grow. 'bicubic' resizes the kernel as if it were an image, as EVA did, and scales
    it by the ratio of areas, which EVA left to fine-tuning: without it tokens of 14 -> 16 come
    out 1.3 times as long. docs/parity.md has both measured.

    Raises:
        ValueError: another method.
    """
    old = weight.shape[-1]
    if method not in ("pinv", "bicubic"):
        raise ValueError(f"method must be 'pinv' or 'bicubic', got {method!r}")
    if old == patch_size:
        return weight
    if method == "bicubic":
        size = (patch_size, patch_size)
        resized = F.interpolate(weight.float(), size=size, mode="bicubic", antialias=True)
        return (resized * (old / patch_size) ** 2).to(weight.dtype)
    pixels = torch.eye(old, dtype=torch.float64)[None, None]
    resize = F.interpolate(pixels, size=(patch_size, old), mode="bilinear", antialias=True)[0, 0]
    inverse = torch.linalg.pinv(resize).T  # [new, old]: of rows and of columns alike
    return (inverse @ weight.double() @ inverse.T).to(weight.dtype)
