"""Deformable convolutions and attention against bilinear sampling written with plain tensors."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.test_compat.test_ops.test_roi_align import bilinear

FALLBACK = SimpleNamespace(**compat.ops.functions())
GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))


def deformable_inputs(groups, deform_groups, kernel=(3, 2), dtype=torch.float64):
    """Input [2, 4, 6, 5], offsets and mask to go with GEOMETRY, kernel [4, 4 / groups, *kernel]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 4 // groups, *kernel, generator=generator, dtype=torch.float64)
    rows, columns = F.conv2d(image, weight, None, **GEOMETRY, groups=groups).shape[2:]
    taps = deform_groups * kernel[0] * kernel[1]
    offset = torch.randn(2, 2 * taps, rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, taps, rows, columns, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (image, offset, mask, weight)]


def reference_deform_conv(image, offset, mask, weight, groups, deform_groups):
    """Gather a column of taps for every output cell, each moved by its offset, then contract."""
    batch, channels = image.shape[:2]
    kernel_rows, kernel_columns = weight.shape[2:]
    rows, columns = offset.shape[2:]
    offset = offset.view(batch, deform_groups, kernel_rows, kernel_columns, 2, rows, columns)
    mask = mask.view(batch, deform_groups, kernel_rows, kernel_columns, rows, columns)
    taps = image.new_zeros(batch, channels, kernel_rows, kernel_columns, rows, columns)
    share = channels // deform_groups
    for b, g, p, q, i, j in torch.cartesian_prod(
        *map(torch.arange, (batch, deform_groups, kernel_rows, kernel_columns, rows, columns))
    ).tolist():
        y = i * GEOMETRY["stride"][0] - GEOMETRY["padding"][0] + p * GEOMETRY["dilation"][0]
        x = j * GEOMETRY["stride"][1] - GEOMETRY["padding"][1] + q * GEOMETRY["dilation"][1]
        dy, dx = offset[b, g, p, q, :, i, j].tolist()
        members = slice(g * share, (g + 1) * share)
        value = bilinear(image[b, members], y + dy, x + dx)
        taps[b, members, p, q, i, j] = value * mask[b, g, p, q, i, j]
    outputs = [
        torch.einsum("bcpqij,ocpq->boij", group_taps, group_weight)
        for group_taps, group_weight in zip(taps.chunk(groups, 1), weight.chunk(groups, 0))
    ]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deformable_convolutions(groups, deform_groups, dtype, tolerance):
    image, offset, mask, weight = deformable_inputs(groups, deform_groups, dtype=dtype)
    exact = [tensor.double() for tensor in (image, offset, mask, weight)]
    bias = torch.arange(4, dtype=dtype)
    expected = reference_deform_conv(*exact, groups, deform_groups) + bias.double().view(1, 4, 1, 1)
    geometry = (*GEOMETRY.values(), groups, deform_groups)
    result = mmcv.ops.modulated_deform_conv2d(image, offset, mask, weight, bias, *geometry)
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    exact[2] = torch.ones_like(exact[2])
    expected = reference_deform_conv(*exact, groups, deform_groups)
    result = mmcv.ops.deform_conv2d(image, offset, weight, *geometry)
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 2)])
def test_deformable_convolutions_gradcheck(groups, deform_groups):
    tensors = deformable_inputs(groups, deform_groups, kernel=(2, 1))
    image, offset, mask, weight = (tensor.requires_grad_() for tensor in tensors)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    geometry = (*GEOMETRY.values(), groups, deform_groups)

    def convolve(*leaves):
        return mmcv.ops.deform_conv2d(*leaves, *geometry)

    def modulated(*leaves):
        return mmcv.ops.modulated_deform_conv2d(*leaves, *geometry)

    def without_bias(*leaves):
        return mmcv.ops.modulated_deform_conv2d(*leaves, None, *geometry)

    check = torch.autograd.gradcheck
    assert check(convolve, (image, offset, weight), fast_mode=True)
    assert check(modulated, (image, offset, mask, weight, bias), fast_mode=True)
    assert check(without_bias, (image, offset, mask, weight), fast_mode=True)


def test_modulated_convolution_layer_of_half_precision(monkeypatch):
    """A new layer has zero offsets and masks of one half: it is half an ordinary convolution."""
    monkeypatch.setattr(
        importlib.import_module("mmcv.ops.modulated_deform_conv"), "ext_module", FALLBACK
    )
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1).bfloat16()
    image = torch.randn(2, 4, 5, 7, dtype=torch.bfloat16)
    with torch.no_grad():
        result = layer(image)
        expected = F.conv2d(image.float(), layer.weight.float() / 2, padding=1).bfloat16()
    assert_close(result, expected)


def test_multi_scale_deformable_attention(monkeypatch):
    """Two levels, compiled for GPUs only by mmcv: the value of each point is sampled by hand."""
    monkeypatch.setattr(
        importlib.import_module("mmcv.ops.multi_scale_deform_attn"), "ext_module", FALLBACK
    )
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[4, 3], [2, 5]])
    starts = torch.tensor([0, 12])
    value = torch.randn(1, 22, 2, 3, generator=generator, dtype=torch.float64)
    points = torch.rand(1, 4, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 4, 2, 2, 2, generator=generator, dtype=torch.float64)
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    def attend(*leaves):
        return MultiScaleDeformableAttnFunction.apply(leaves[0], shapes, starts, *leaves[1:], 64)

    expected = torch.zeros(1, 4, 2, 3, dtype=torch.float64)
    for q, h, level, p in torch.cartesian_prod(*map(torch.arange, (4, 2, 2, 2))).tolist():
        rows, columns = shapes[level].tolist()
        image = value[0, starts[level] : starts[level] + rows * columns, h].T.view(3, rows, columns)
        x, y = (points[0, q, h, level, p] * torch.tensor([columns, rows]) - 0.5).tolist()
        expected[0, q, h] += weights[0, q, h, level, p] * bilinear(image, y, x)
    assert_close(attend(value, points, weights), expected.flatten(2), rtol=1e-9, atol=1e-9)
    leaves = [tensor.requires_grad_() for tensor in (value, points, weights)]
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)
