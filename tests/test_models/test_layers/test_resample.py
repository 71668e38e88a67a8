"""Patch kernels at another patch size: which way keeps the tokens, measured on images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ropevit_mmdet.datasets.shapes.scene import draw_scene
from ropevit_mmdet.models.layers.resample import resample_patch_kernel

BARE = "bicubic, not scaled by area"  # as EVA-02


@pytest.fixture(scope="module")
def images():
    return draw_images(4)


def draw_images(count: int) -> torch.Tensor:
    """Images of the shapes dataset, normalised, float64 [count, 3, 224, 224]."""
    drawn = [draw_scene(np.random.default_rng(i), 224, 224)[0] for i in range(count)]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).double() / 255
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


def error(images, weight, patch_size, *, scaled_by, method) -> float:
    """How far the tokens of scaled images are from those of the images, relatively."""
    tokens = F.conv2d(images, weight, stride=14)
    side = 16 * patch_size
    scaled = F.interpolate(images, size=(side, side), mode=scaled_by, antialias=True)
    if method == BARE:
        resampled = F.interpolate(weight, size=(patch_size, patch_size), mode="bicubic")
    else:
        resampled = resample_patch_kernel(weight, patch_size, method)
    return ((F.conv2d(scaled, resampled, stride=patch_size) - tokens).norm() / tokens.norm()).item()


@pytest.mark.parametrize("patch_size", [16, 12])
@pytest.mark.parametrize("blur", [0, 1, 2])
def test_pinv_keeps_tokens_best_where_images_are_scaled_bilinearly(images, blur, patch_size):
    """As mmcv scales them by default."""
    weight = kernel(blur)
    pinv, bicubic, bare = (
        error(images, weight, patch_size, scaled_by="bilinear", method=method)
        for method in ("pinv", "bicubic", BARE)
    )
    assert pinv < 0.75 * bicubic < bicubic < bare
    assert pinv < 0.02 if patch_size == 16 or blur else pinv < 0.1


def test_bicubic_is_ahead_only_for_smooth_kernels_and_bicubic_images(images):
    for blur in (1, 2):
        pinv, bicubic = (
            error(images, kernel(blur), 16, scaled_by="bicubic", method=method)
            for method in ("pinv", "bicubic")
        )
        assert bicubic < pinv < 0.02  # both keep them


def test_without_the_ratio_of_areas_tokens_grow_with_the_patch(images):
    weight = kernel(1)
    bare = error(images, weight, 16, scaled_by="bilinear", method=BARE)
    assert bare == pytest.approx((16 / 14) ** 2 - 1, rel=0.05)


def test_pinv_is_exact_for_bilinear_patches_one_by_one():
    """The definition: products with the resized patch are those with the patch."""
    weight, patch = torch.randn(2, 8, 3, 14, 14, dtype=torch.float64)
    for size in (15, 16, 28, 32):
        resized = F.interpolate(patch, size=(size, size), mode="bilinear", antialias=True)
        products = (resample_patch_kernel(weight, size) * resized).sum((1, 2, 3))
        torch.testing.assert_close(products, (weight * patch).sum((1, 2, 3)))


@pytest.mark.parametrize("method, tolerance", [("pinv", 1e-9), ("bicubic", 2e-2)])
def test_one_color_keeps_its_embedding(method, tolerance):
    weight = kernel(2)
    sums = resample_patch_kernel(weight, 16, method).sum((2, 3))
    error = (sums - weight.sum((2, 3))).abs().max() / weight.sum((2, 3)).abs().max()
    assert error < tolerance


def test_dtype_stays_and_the_same_size_is_left_alone():
    weight = torch.randn(4, 3, 14, 14).half()
    assert resample_patch_kernel(weight, 14) is weight
    assert resample_patch_kernel(weight, 16).dtype == torch.float16


def test_another_method_is_named():
    with pytest.raises(ValueError, match="'nearest'"):
        resample_patch_kernel(torch.zeros(1, 3, 14, 14), 16, "nearest")
