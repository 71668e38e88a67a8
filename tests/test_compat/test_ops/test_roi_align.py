"""RoIAlign against bilinear sampling written with plain tensors."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib
import math
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close


@pytest.fixture
def fallback(monkeypatch):
    """mmcv's wrapper over the fallback, also where mmcv is compiled."""
    module = importlib.import_module("mmcv.ops.roi_align")
    monkeypatch.setattr(module, "ext_module", SimpleNamespace(**compat.ops.functions()))


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


@pytest.mark.usefixtures("fallback")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_half_precision_maps(dtype):
    """Boxes in float32 with maps in half: no pixel is lost, only the result is rounded."""
    maps, rois = maps_and_rois(torch.float32)
    maps = maps.to(dtype)
    exact, leaf = maps.float().requires_grad_(), maps.clone().requires_grad_()
    pool = mmcv.ops.RoIAlign(3, SCALE)
    expected, result = pool(exact, rois), pool(leaf, rois)
    assert_close(result, expected.to(dtype), rtol=0, atol=0)
    expected.sum().backward()
    result.sum().backward()
    assert_close(leaf.grad, exact.grad.to(dtype), rtol=0, atol=0)
