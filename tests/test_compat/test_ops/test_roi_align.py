"""RoIAlign against `grid_sample`, through mmcv.ops."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib
import math
from concurrent.futures import ThreadPoolExecutor

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

SCALE = 9 / 32  # cells per pixel; a float32, as which a compiled mmcv takes it


@pytest.fixture(autouse=True)
def fallback_only(monkeypatch):
    """mmcv's wrapper over the fallback, also where mmcv is compiled."""
    module = importlib.import_module("mmcv.ops.roi_align")
    monkeypatch.setattr(module, "ext_module", compat.ops.fallback_module())


def reference_roi_align(maps, rois, output_size, sampling_ratio, aligned):
    """Averages samples: the border is repeated for one cell, all beyond is 0."""
    pooled = maps.new_zeros(len(rois), maps.size(1), *output_size)
    for output, (image, *box) in zip(pooled, rois.tolist()):
        x1, y1, x2, y2 = (side * SCALE - (0.5 if aligned else 0) for side in box)
        points, inside, samples = [], [], []
        axes = ((x1, x2, output_size[1], maps.size(3)), (y1, y2, output_size[0], maps.size(2)))
        for start, end, bins, cells in axes:
            extent = max(end - start, 0 if aligned else 1)
            samples.append(sampling_ratio or math.ceil(extent / bins))
            count = bins * samples[-1]
            steps = torch.arange(count, dtype=torch.float64) + 0.5
            points.append(start + steps / max(count, 1) * extent)
            inside.append((points[-1] >= -1) & (points[-1] <= cells))
            points[-1] = 2 * points[-1] / (cells - 1) - 1
        if not all(samples):  # a box without area
            continue
        grid = torch.stack(torch.meshgrid(*points, indexing="xy"), dim=-1).to(maps)
        values = F.grid_sample(
            maps[int(image), None], grid[None], padding_mode="border", align_corners=True
        )
        values = values * (inside[1][:, None] & inside[0])
        output.copy_(F.avg_pool2d(values, samples[::-1])[0])
    return pooled


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
    result = mmcv.ops.RoIAlign((3, 2), SCALE, sampling_ratio, aligned=aligned)(maps, rois)
    expected = reference_roi_align(*maps_and_rois(), (3, 2), sampling_ratio, aligned)
    assert result.dtype == dtype
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    assert expected[:4].abs().amax(dim=(1, 2, 3)).min() > 0.1 and not expected[4].any()


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradcheck(aligned, sampling_ratio):
    maps, rois = maps_and_rois()

    def pool(values):
        return mmcv.ops.roi_align(values, rois, (3, 2), SCALE, sampling_ratio, "avg", aligned)

    leaf = maps[:, :1, :, :7].clone().requires_grad_()
    assert torch.autograd.gradcheck(pool, leaf, fast_mode=True)


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_without_boxes(num_images, sampling_ratio):
    maps = torch.randn(num_images, 3, 9, 13, requires_grad=True)
    pooled = mmcv.ops.RoIAlign(7, 0.25, sampling_ratio)(maps, torch.zeros(0, 5))
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7) and not maps.grad.any()


def test_maximum_pooling_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*has no fallback"):
        mmcv.ops.RoIAlign(3, pool_mode="max")(*maps_and_rois())


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roi_align_on_several_threads(mode, dtype, monkeypatch):
    maps, rois = maps_and_rois(torch.float32)
    rois = rois.repeat(40, 1)
    results, used = [], []
    submitted = ThreadPoolExecutor.submit
    monkeypatch.setattr(
        ThreadPoolExecutor, "submit", lambda *args: used.append(args) or submitted(*args)
    )
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        leaf = maps.to(dtype, memory_format=torch.channels_last).requires_grad_()
        with mode():
            results.append(mmcv.ops.RoIAlign(3, SCALE)(leaf, rois))
        assert len(used) == (0 if threads == 1 else 3)
    assert torch.equal(*results)
    assert results[1].requires_grad == (mode is torch.enable_grad)
