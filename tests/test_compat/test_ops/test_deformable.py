"""Deformable convolutions and attention against `grid_sample`, through mmcv.ops."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch.testing import assert_close

FALLBACK = compat.ops.fallback_module()
GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))
EXACT = dict(rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def fallback_only(monkeypatch):
    """mmcv's wrappers over the fallback, also where mmcv is compiled."""
    for name in ("deform_conv", "modulated_deform_conv", "multi_scale_deform_attn"):
        monkeypatch.setattr(importlib.import_module(f"mmcv.ops.{name}"), "ext_module", FALLBACK)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def deformable_inputs(groups, deform_groups, batch=2, kernel=(3, 2)):
    """Input [B, 4, 6, 5], offset and mask to go with GEOMETRY, weight [4, 4 / groups, *kernel]."""
    image, weight = random(batch, 4, 6, 5), random(4, 4 // groups, *kernel)
    grid = F.conv2d(image, weight, None, **GEOMETRY, groups=groups).shape[2:]
    taps = deform_groups * kernel[0] * kernel[1]
    return image, random(batch, 2 * taps, *grid), random(batch, taps, *grid).sigmoid(), weight


def reference_deform_conv(image, offset, mask, weight, groups, deform_groups):
    """Samples a value for every tap of every output cell, then contracts."""
    (batch, _, height, width), (rows, columns) = image.shape, mask.shape[2:]
    size = (batch * deform_groups, *weight.shape[2:])
    offset, mask = offset.view(*size, 2, rows, columns), mask.view(*size, 1, rows, columns)
    image = image.view(batch * deform_groups, -1, height, width)
    taps = image.new_zeros(*image.shape[:2], *weight.shape[2:], rows, columns)
    for p, q in torch.cartesian_prod(*map(torch.arange, weight.shape[2:])).tolist():
        y, x = (
            torch.arange(cells) * GEOMETRY["stride"][axis]
            - GEOMETRY["padding"][axis]
            + (p, q)[axis] * GEOMETRY["dilation"][axis]
            for axis, cells in enumerate((rows, columns))
        )
        y, x = y[:, None] + offset[:, p, q, 0], x + offset[:, p, q, 1]
        grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
        taps[:, :, p, q] = F.grid_sample(image, grid, align_corners=True) * mask[:, p, q]
    taps = taps.view(batch, groups, -1, *taps.shape[2:])
    outputs = torch.einsum("bgcpqij,gocpq->bgoij", taps, weight.unflatten(0, (groups, -1)))
    return outputs.flatten(1, 2)


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deformable_convolutions(groups, deform_groups):
    image, offset, mask, weight = deformable_inputs(groups, deform_groups)
    geometry, bias = (*GEOMETRY.values(), groups, deform_groups), random(4)
    result = mmcv.ops.modulated_deform_conv2d(image, offset, mask, weight, bias, *geometry)
    expected = reference_deform_conv(image, offset, mask, weight, groups, deform_groups)
    assert_close(result, expected + bias.view(1, 4, 1, 1), **EXACT)
    result = mmcv.ops.deform_conv2d(image.mT.contiguous().mT, offset, weight, *geometry)
    mask = torch.ones_like(mask)
    expected = reference_deform_conv(image, offset, mask, weight, groups, deform_groups)
    assert_close(result, expected, **EXACT)
    single = (tensor.float() for tensor in (image, offset, weight))
    assert_close(mmcv.ops.deform_conv2d(*single, *geometry), result.float(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 2)])
def test_deformable_convolutions_gradcheck(groups, deform_groups):
    tensors = deformable_inputs(groups, deform_groups, kernel=(2, 1))
    image, offset, mask, weight = (tensor.requires_grad_() for tensor in tensors)
    geometry = (*GEOMETRY.values(), groups, deform_groups)

    def check(convolve, *leaves):
        assert torch.autograd.gradcheck(lambda *x: convolve(*x, *geometry), leaves, fast_mode=True)

    check(mmcv.ops.deform_conv2d, image, offset, weight)
    check(mmcv.ops.modulated_deform_conv2d, image, offset, mask, weight, random(4).requires_grad_())
    check(mmcv.ops.modulated_deform_conv2d, image, offset, mask, weight, None)


def test_modulated_convolution_with_offsets_of_a_larger_map():
    """mmcv's kernel reads the first numbers of each image's offsets and masks, as DyHead needs."""
    tensors = image, offset, mask, weight = deformable_inputs(1, 2)
    both = torch.cat((random(2, 24, 7, 9), random(2, 12, 7, 9)), dim=1)  # sliced as in DyHead
    large, larger = both[:, :24], both[:, 24:]
    for target, source in ((large, offset), (larger, mask)):
        for pixels, values in zip(target, source):
            pixels.view(-1)[: values.numel()] = values.flatten()
    geometry, results = (*GEOMETRY.values(), 1, 2), []
    for arguments in (tensors, (image, large, larger, weight)):
        leaves = [leaf.detach().requires_grad_() for leaf in arguments]
        result = mmcv.ops.modulated_deform_conv2d(*leaves, None, *geometry)
        (result * torch.arange(result.numel()).view(result.shape)).sum().backward()
        results.append([result, *(leaf.grad for leaf in leaves)])
    for expected, result in zip(*results):
        unused = result[0].numel() - expected[0].numel()
        assert_close(result.flatten(1), F.pad(expected.flatten(1), (0, unused)), rtol=0, atol=0)


def test_modulated_convolution_layer_of_half_precision():
    """A new layer has zero offsets and masks of one half: it is half an ordinary convolution."""
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1).bfloat16()
    image = torch.randn(2, 4, 5, 7, dtype=torch.bfloat16)
    with torch.no_grad():
        result = layer(image)
        expected = F.conv2d(image.float(), layer.weight.float() / 2, padding=1).bfloat16()
    assert_close(result, expected)


def test_multi_scale_deformable_attention():
    """mmcv compiles it for GPUs only: forward and backward are those of its PyTorch version."""
    shapes, starts = torch.tensor([[4, 3], [2, 5]]), torch.tensor([0, 12])
    leaves = [random(1, 22, 2, 3), random(1, 4, 2, 2, 2, 2).sigmoid(), random(1, 4, 2, 2, 2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def attend(value, points, weights):
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, points, weights, 64)

    expected = multi_scale_deformable_attn_pytorch(leaves[0], shapes, *leaves[1:])
    assert_close(attend(*leaves), expected, rtol=0, atol=0)
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("modulated", [False, True])
def test_nan_among_the_offsets_gives_nan(modulated, axis):
    """torchvision's kernels read outside of the memory there, which may end the process."""
    image, offset, mask, weight = (x.requires_grad_() for x in deformable_inputs(1, 1))
    offset.data[0, axis::2] = torch.nan
    if modulated:
        out = mmcv.ops.modulated_deform_conv2d(
            image, offset, mask, weight, None, *GEOMETRY.values(), 1, 1
        )
    else:
        out = mmcv.ops.deform_conv2d(image, offset, weight, *GEOMETRY.values(), 1, 1)
    out.sum().backward()
    assert out.isnan().all()
    assert weight.grad.isnan().all()
