"""RoIAlign and deformable operators against bilinear sampling written with plain tensors."""

from ropevit_mmdet import compat  # isort: skip  (it must precede mmcv.ops)

import importlib
import math

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

STANDIN = compat.ops.build_module()


def give_standin(monkeypatch, module):
    """mmcv's wrapper over the stand-in, also where mmcv is compiled: for what that one refuses."""
    monkeypatch.setattr(importlib.import_module(f"mmcv.ops.{module}"), "ext_module", STANDIN)


def bilinear(image, y, x):
    """Values [C] of image [C, H, W] between cell centres at whole y, x; 0 for cells outside."""
    top, left = math.floor(y), math.floor(x)
    value = image.new_zeros(image.size(0))
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < image.size(1) and 0 <= column < image.size(2):
                value = value + row_weight * column_weight * image[:, row, column]
    return value


def roi_sample(image, y, x):
    """As bilinear, but RoIAlign repeats the border for one cell and is 0 beyond that."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(image.size(0))
    return bilinear(image, min(max(y, 0), height - 1), min(max(x, 0), width - 1))


def reference_roi_align(maps, rois, output_size, scale, sampling_ratio, aligned):
    shift = 0.5 if aligned else 0.0
    pooled = maps.new_zeros(len(rois), maps.size(1), *output_size)
    for index, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (side * scale - shift for side in box)
        smallest = 0.0 if aligned else 1.0
        bin_height = max(y2 - y1, smallest) / output_size[0]
        bin_width = max(x2 - x1, smallest) / output_size[1]
        rows = sampling_ratio or math.ceil(bin_height)
        columns = sampling_ratio or math.ceil(bin_width)
        for i in range(output_size[0]):
            for j in range(output_size[1]):
                samples = [
                    roi_sample(
                        maps[int(image)],
                        y1 + (i + (row + 0.5) / rows) * bin_height,
                        x1 + (j + (column + 0.5) / columns) * bin_width,
                    )
                    for row in range(rows)
                    for column in range(columns)
                ]
                if samples:
                    pooled[index, :, i, j] = torch.stack(samples).mean(dim=0)
    return pooled


SCALE = 9 / 32  # cells per pixel; a float32, as which a compiled mmcv takes it


def maps_and_rois(dtype=torch.float64):
    """Maps [2, 3, 9, 13] for SCALE; boxes inside, across the border, outside, without area."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 9, 13, generator=generator, dtype=torch.float64)
    rois = [
        [0, 3.3, 2.1, 30.7, 21.9],
        [1, 10.2, 0.4, 14.9, 28.6],
        [1, -9.4, -7.7, 12.6, 9.1],
        [0, 30.3, 20.8, 70.2, 55.7],
        [1, 90.1, 80.2, 99.7, 95.3],
        [0, 7.7, 7.7, 7.7, 7.7],
    ]
    return maps.to(dtype), torch.tensor(rois, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(aligned, sampling_ratio, dtype, tolerance):
    maps, rois = maps_and_rois(dtype)
    layer = mmcv.ops.RoIAlign((3, 2), SCALE, sampling_ratio, aligned=aligned)
    expected = reference_roi_align(
        maps.double(), rois.double(), (3, 2), SCALE, sampling_ratio, aligned
    )
    result = layer(maps, rois)
    assert result.dtype == dtype
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    assert expected[:4].abs().amax(dim=(1, 2, 3)).min() > 0.1 and not expected[4].any()


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradcheck(aligned, sampling_ratio):
    maps, rois = maps_and_rois()

    def pool(values):
        return mmcv.ops.roi_align(values, rois, (3, 2), SCALE, sampling_ratio, "avg", aligned)

    assert torch.autograd.gradcheck(pool, maps[:, :1, :, :7].clone().requires_grad_())


def test_roi_align_takes_a_gradient_that_is_not_contiguous():
    maps, rois = maps_and_rois(torch.float32)
    gradients = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        leaf = maps.clone().requires_grad_()
        pooled = mmcv.ops.roi_align(leaf, rois, (3, 2), SCALE, 0, "avg", True)
        weight = torch.arange(pooled.numel(), dtype=torch.float32).view(pooled.shape)
        (pooled.permute(order) * weight.permute(order)).sum().backward()
        gradients.append(leaf.grad)
    assert_close(*gradients)


def test_roi_align_without_boxes_or_images():
    maps = torch.randn(2, 3, 9, 13, requires_grad=True)
    pooled = mmcv.ops.RoIAlign(7, 0.25)(maps, torch.zeros(0, 5))
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7)
    assert not maps.grad.any()
    assert mmcv.ops.RoIAlign(7, 0.25)(maps[:0], torch.zeros(0, 5)).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_half_precision_maps(dtype, monkeypatch):
    """Boxes in float32 beside maps in half: no pixel is lost, only the result is rounded."""
    give_standin(monkeypatch, "roi_align")
    maps, rois = maps_and_rois(torch.float32)
    maps = maps.to(dtype)
    exact, leaf = maps.float().requires_grad_(), maps.clone().requires_grad_()
    pool = mmcv.ops.RoIAlign(3, SCALE)
    expected, result = pool(exact, rois), pool(leaf, rois)
    assert_close(result, expected.to(dtype), rtol=0, atol=0)
    expected.sum().backward()
    result.sum().backward()
    assert_close(leaf.grad, exact.grad.to(dtype), rtol=0, atol=0)


def test_roi_align_max_pooling_is_refused(monkeypatch):
    give_standin(monkeypatch, "roi_align")
    with pytest.raises(NotImplementedError, match="pool_mode='avg'"):
        mmcv.ops.RoIAlign(3, pool_mode="max")(*maps_and_rois())


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
    give_standin(monkeypatch, "modulated_deform_conv")
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1).bfloat16()
    image = torch.randn(2, 4, 5, 7, dtype=torch.bfloat16)
    with torch.no_grad():
        result = layer(image)
        expected = F.conv2d(image.float(), layer.weight.float() / 2, padding=1).bfloat16()
    assert_close(result, expected)


def test_multi_scale_deformable_attention(monkeypatch):
    """Two levels, compiled for GPUs only by mmcv: the value of each point is sampled by hand."""
    give_standin(monkeypatch, "multi_scale_deform_attn")
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
