"""RoIAlign of the fallback (He et al., arXiv 1703.06870) on torchvision's kernels.

`roi_pool` is missing on purpose: torchvision rounds the box to cells first, mmcv does not.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ropevit_mmdet.compat.ops._kernels import torchvision_ops, unsupported, working_dtype

_MIN_ROIS = 64  # for which threads are worth their start
MAX_POOLING = 0  # pool_mode of mmcv's RoIAlign; 1 is the average


def roi_align_forward(input, rois, output, argmax_y, argmax_x, **settings) -> None:
    """Fills `output` [R, C, rows, columns] from feature maps [B, C, H, W].

    `rois` [R, 5] are (image, x1, y1, x2, y2) in pixels.
    """
    dtype, geometry = working_dtype(input.dtype), _settings(**settings)
    maps, rois, roi_align = input.to(dtype), rois.to(dtype), torchvision_ops().roi_align
    threads = torch.get_num_threads()
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling() or type(maps) is not Tensor
    if maps.device.type != "cpu" or traced or threads == 1 or len(rois) < _MIN_ROIS:
        output.copy_(roi_align(maps, rois, *geometry))
        return
    maps, inference = maps.contiguous(), torch.is_inference_mode_enabled()

    def fill(output_part: Tensor, rois_part: Tensor) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes belong to a thread
            output_part.copy_(roi_align(maps, rois_part, *geometry))

    with ThreadPoolExecutor(threads) as pool:  # the kernel for CPUs runs on one
        list(pool.map(fill, output.chunk(threads), rois.chunk(threads)))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, **settings) -> None:
    """Fills `grad_input` [B, C, H, W] from the gradient of roi_align_forward's output."""
    *geometry, sampling_ratio, aligned = arguments = _settings(**settings)
    dtype = working_dtype(grad_output.dtype)
    grad_output, rois = grad_output.to(dtype), rois.to(dtype)
    if grad_output.device.type == "cpu" and sampling_ratio > 0:
        # torchvision scatters one number at a time there: four to nine times slower.
        bins = grad_output.movedim(1, -1).flatten(0, 2)  # [R * rows * columns, C]
        cells = grad_input.movedim(1, -1)  # [B, H, W, C]
        cells.copy_((_pooling_matrix(rois, cells.shape, *arguments) @ bins).view(cells.shape))
        return
    grad_input.copy_(
        torchvision_ops()._roi_align_backward(
            grad_output, rois, *geometry, *grad_input.shape, sampling_ratio, aligned
        )
    )


def _settings(
    *, aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned
) -> tuple[float, int, int, int, bool]:
    """mmcv's keyword arguments in the order of torchvision.

    Cells of the feature map per pixel, rows and columns of bins, samples per side of a bin (0: one
    per cell), and whether boxes move by half a cell. Maximum pooling has no fallback.
    """
    if pool_mode == MAX_POOLING:
        unsupported("roi_align(pool_mode='max')")()
    return spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned


def _pooling_matrix(rois, shape, spatial_scale, rows, columns, samples, aligned) -> Tensor:
    """Transposed matrix of RoIAlign, sparse [B * H * W, R * rows * columns].

    RoIAlign is linear in the feature map, whose `shape` is (B, H, W, C). An entry is the weight of
    a cell in a bin, the product of a weight along y and one along x.
    """
    batch, height, width, _ = shape
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extents = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        extents = extents.clamp(min=1)
    y_cells, y_weights = _axis_weights(boxes[:, 1], extents[:, 1], rows, samples, height)
    x_cells, x_weights = _axis_weights(boxes[:, 0], extents[:, 0], columns, samples, width)
    first_row = rois[:, 0].long()[:, None, None] * height
    cells = (first_row + y_cells[:, :, None]) * width + x_cells[:, None]  # [R, 2sh, 2sw]
    roi = torch.arange(len(rois))[:, None, None]
    y_bins = torch.arange(rows).repeat_interleave(2 * samples)[:, None]
    x_bins = torch.arange(columns).repeat_interleave(2 * samples)
    pooled = ((roi * rows + y_bins) * columns + x_bins).expand(cells.shape)
    return torch.sparse_coo_tensor(
        torch.stack((cells.flatten(), pooled.flatten())),
        (y_weights[:, :, None] * x_weights[:, None]).flatten(),
        (batch * height * width, len(rois) * rows * columns),
        check_invariants=False,
    )


def _axis_weights(
    starts: Tensor, extents: Tensor, bins: int, samples: int, length: int
) -> tuple[Tensor, Tensor]:
    """The two cells next to each sample along an axis, and their weights, [R, 2 * s * bins].

    A sample up to one cell outside counts as on the border, one farther out as zero.
    """
    steps = (torch.arange(bins * samples, dtype=starts.dtype) + 0.5) / samples
    positions = starts[:, None] + extents[:, None] / bins * steps
    inside = (positions >= -1) & (positions <= length)
    positions = positions.clamp(0, length - 1)
    low = positions.floor()
    high = (low + 1).clamp(max=length - 1)
    fraction = positions - low
    cells = torch.stack((low, high), dim=-1).flatten(1).long()
    weights = torch.stack((1 - fraction, fraction), dim=-1) * inside[..., None] / samples
    return cells, weights.flatten(1)
