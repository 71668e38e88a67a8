"""Patch embedding: the matrix product, and patch kernels resampled to another patch size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ropevit_mmdet.datasets.shapes.scene import draw_scene
from ropevit_mmdet.models.layers.patch_embed import StridedConv, resample_patch_kernel

EVA02 = "bicubic, not scaled by area"


@pytest.fixture(scope="module")
def images():
    return render_images(4)


def render_images(count: int) -> torch.Tensor:
    """Images of the shapes dataset, normalized, float64 [count, 3, 224, 224]."""
    scenes = [draw_scene(np.random.default_rng(i), 224, 224)[0] for i in range(count)]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).double() / 255
    return (images - images.mean()) / images.std()


def kernel(blur: float) -> torch.Tensor:
    """Random kernels [32, 3, 14, 14], blurred by a Gaussian of that many pixels."""
    weight = torch.randn(32, 3, 14, 14, dtype=torch.float64)
    if not blur:
        return weight
    taps = torch.exp(-((torch.arange(-6.0, 7.0, dtype=torch.float64) / blur) ** 2) / 2)
    taps = (taps / taps.sum()).view(1, 1, -1, 1)
    blurred = F.conv2d(weight.flatten(0, 1)[:, None], taps, padding=(6, 0))
    return F.conv2d(blurred, taps.mT, padding=(0, 6)).view(weight.shape)


def resample(weight, patch_size: int, method: str) -> torch.Tensor:
    """The package's method ('pinv'), EVA's ('bicubic', scaled by area) and EVA-02's."""
    if method == "pinv":
        return resample_patch_kernel(weight, patch_size)
    size, antialias = (patch_size, patch_size), method != EVA02
    resized = F.interpolate(weight, size=size, mode="bicubic", antialias=antialias)
    return resized if method == EVA02 else resized * (14 / patch_size) ** 2


def token_error(images, weight, patch_size, *, scaled_by, method) -> float:
    """Relative difference between the tokens of scaled images and those of the images."""
    tokens = F.conv2d(images, weight, stride=14)
    side = 16 * patch_size
    scaled = F.interpolate(images, size=(side, side), mode=scaled_by, antialias=True)
    new = F.conv2d(scaled, resample(weight, patch_size, method), stride=patch_size)
    return ((new - tokens).norm() / tokens.norm()).item()


@pytest.mark.parametrize("patch_size", [16, 12])
@pytest.mark.parametrize("blur", [0, 1, 2])
def test_pinv_keeps_tokens_best_if_images_are_scaled_bilinearly(images, blur, patch_size):
    """As mmcv scales them by default."""
    weight = kernel(blur)
    pinv, bicubic, eva02 = (
        token_error(images, weight, patch_size, scaled_by="bilinear", method=method)
        for method in ("pinv", "bicubic", EVA02)
    )
    assert pinv < 0.75 * bicubic < bicubic < eva02
    assert pinv < 0.02 if patch_size == 16 or blur else pinv < 0.1


def test_pinv_is_exact_for_bilinear_patches():
    """The definition: products with the resized patch are those with the patch."""
    weight, patch = torch.randn(2, 8, 3, 14, 14, dtype=torch.float64)
    for size in (15, 16, 28, 32):
        resized = F.interpolate(patch, size=(size, size), mode="bilinear", antialias=True)
        products = (resample_patch_kernel(weight, size) * resized).sum((1, 2, 3))
        torch.testing.assert_close(products, (weight * patch).sum((1, 2, 3)))


def test_resampling_keeps_sums_and_dtype_and_returns_the_same_size_as_it_is():
    weight = kernel(2)
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
