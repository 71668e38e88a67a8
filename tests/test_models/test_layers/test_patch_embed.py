"""Patch embedding: the matrix product, and patch kernels resampled to another patch size."""

import pytest
import torch
import torch.nn.functional as F

from ropevit_mmdet.models.layers.patch_embed import StridedConv, resample_patch_kernel


def test_pinv_is_exact_for_bilinear_patches():
    """The definition: products with the resized patch are those with the patch."""
    weight, patch = torch.randn(2, 8, 3, 14, 14, dtype=torch.float64)
    for size in (15, 16, 28, 32):
        resized = F.interpolate(patch, size=(size, size), mode="bilinear", antialias=True)
        products = (resample_patch_kernel(weight, size) * resized).sum((1, 2, 3))
        torch.testing.assert_close(products, (weight * patch).sum((1, 2, 3)))


def test_resampling_keeps_sums_and_dtype_and_returns_the_same_size_as_it_is():
    weight = torch.randn(32, 3, 14, 14, dtype=torch.float64)
    torch.testing.assert_close(resample_patch_kernel(weight, 16).sum((2, 3)), weight.sum((2, 3)))
    half = weight.half()
    assert resample_patch_kernel(half, 14) is half
    assert resample_patch_kernel(half, 16).dtype == torch.float16


@pytest.mark.parametrize("stride", [(14, 14), (4, 7)])
def test_matrix_product_equals_the_convolution(stride):
    conv = StridedConv(3, 8, stride, stride=stride).double()
    images = torch.randn(2, 3, 56, 42, dtype=torch.float64)
    torch.testing.assert_close(conv.as_matmul(images), conv(images), rtol=0, atol=1e-12)
    assert conv._is_patchify(images) and not conv._is_patchify(images[..., :-1])
    assert not StridedConv(3, 8, 3, stride=2, padding=1)._is_patchify(images)
