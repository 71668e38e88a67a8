"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159) in little memory.

mmcv's PyTorch version samples every point before it sums them, which takes about 50 times the
memory of the output. On a CPU, attention here is a sum of weighted rows (`embedding_bag`) for a few
queries at a time; on a GPU, a Triton kernel. While PyTorch traces, compiles or exports, and where
Triton does not work, mmcv's version is used.

Shapes: B images, Q queries, N tokens of all levels, h heads, D channels of a head, L levels, P
points, K = L * P.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmcv.ops import multi_scale_deform_attn as mmcv_module
from torch import Tensor
from torch.autograd.function import once_differentiable

from ropevit_mmdet.compat.ops import deformable, multi_scale_deformable_triton
from ropevit_mmdet.compat.ops._kernels import working_dtype

_POINTS_AT_ONCE = 1 << 14  # their samples fit into the cache of a CPU core
mmcv_attention = mmcv_module.multi_scale_deformable_attn_pytorch


def install() -> None:
    """Makes mmcv's layer call `multi_scale_deformable_attention`, unless mmcv is compiled."""
    if mmcv_module.ext_module.ms_deform_attn_forward is deformable.ms_deform_attn_forward:
        mmcv_module.multi_scale_deformable_attn_pytorch = multi_scale_deformable_attention
        # The layer's branch for GPUs rounds locations to the dtype of the values.
        mmcv_module.IS_CUDA_AVAILABLE = False


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sums of values, sampled bilinearly at points of several feature maps.

    Equals mmcv's `multi_scale_deformable_attn_pytorch`, whose arguments it has. It computes in
    float32, or float64 for values in float64.

    Args:
        value: [B, N, h, D], level after level, each row by row.
        value_spatial_shapes: [L, 2], (height, width) of each level in tokens.
        sampling_locations: [B, Q, h, L, P, 2], (x, y) in 0..1; points outside sample zeros.
        attention_weights: [B, Q, h, L, P].

    Returns:
        [B, Q, h * D] in the dtype of `value`.

    Raises:
        RuntimeError: the levels do not have N tokens.
    """
    locations, weights = sampling_locations, attention_weights
    if type(value) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        shapes = torch.as_tensor(value_spatial_shapes, device=value.device)
        value.split(shapes.prod(1).tolist(), dim=1)  # fails if these are not the tokens' levels
        if value.device.type == "cpu":
            return GatheredAttention.apply(value, shapes, locations, weights)
        if multi_scale_deformable_triton.is_supported(value, mmcv_attention):
            attend = multi_scale_deformable_triton.TritonAttention.apply
            return attend(value, shapes, locations, weights)
    exact = working_dtype(value.dtype)
    inputs = value.to(exact), value_spatial_shapes, locations.to(exact), weights.to(exact)
    return mmcv_attention(*inputs).to(value.dtype)


class GatheredAttention(torch.autograd.Function):
    """The form for CPUs; the backward pass samples again."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, shapes, locations, weights)
        sampler = _Sampler(value, shapes, locations.shape[4])
        output = value.new_empty(*locations.shape[:3], value.shape[3])
        for chunk in _chunks(locations):
            output[chunk] = sampler.sums(*sampler.rows(chunk[0], locations[chunk], weights[chunk]))
        return output.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, shapes, locations, weights = ctx.saved_tensors
        sampler = _Sampler(value, shapes, locations.shape[4])
        grad = grad.to(sampler.table.dtype).unflatten(2, value.shape[2:])
        grad_table = torch.zeros_like(sampler.table)
        grads = torch.empty_like(locations), torch.empty_like(weights)
        for chunk in _chunks(locations):
            leaves = [tensor[chunk].detach().requires_grad_() for tensor in (locations, weights)]
            with torch.enable_grad():
                index, factor = sampler.rows(chunk[0], *leaves)
            finite = leaves[0].isfinite().all(-1).flatten(2)  # others sample no value
            grad_sums = grad[chunk].unsqueeze(2)  # [Q, h, 1, D]
            grad_factor = torch.empty_like(factor)
            for corner in range(4):
                rows = index[corner].flatten()
                weight = factor[corner].detach().where(finite, 0).unsqueeze(-1)
                samples = sampler.table.index_select(0, rows).view(*weight.shape[:-1], -1)
                grad_factor[corner] = samples.mul_(grad_sums).sum(-1)
                grad_table.index_add_(0, rows, (weight * grad_sums).flatten(0, 2))
            for target, part in zip(grads, torch.autograd.grad(factor, leaves, grad_factor)):
                target[chunk] = part
        return grad_table.view(value.shape).to(value.dtype), None, *grads


class _Sampler:
    """Finds the rows of values that points sample, and sums them."""

    def __init__(self, value: Tensor, shapes: Tensor, points: int) -> None:
        self.dtype = working_dtype(value.dtype)
        self.table = value.to(self.dtype).reshape(-1, value.shape[3])
        self.heads = value.shape[2]
        self.image_rows = value.shape[1:3].numel()
        height, width = shapes.repeat_interleave(points, dim=0).unbind(1)
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        self.height, self.width = height, width  # of the level of each point, [K]
        self.first_row = starts.repeat_interleave(points) * self.heads
        self.first_row = self.first_row + torch.arange(self.heads).unsqueeze(1)  # [h, K]

    def rows(self, image: int, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Four rows per point and their factors, [4, Q, h, K], of queries of one image."""
        x, y = locations.to(self.dtype).flatten(2, 3).unbind(-1)
        column, column_factor = _nearest_two(x * self.width - 0.5, self.width)
        row, row_factor = _nearest_two(y * self.height - 0.5, self.height)
        row = row * (self.width * self.heads) + (self.first_row + image * self.image_rows)
        index = row.unsqueeze(1) + column * self.heads
        row_factor = row_factor * weights.to(self.dtype).flatten(2)
        factor = row_factor.unsqueeze(1) * column_factor
        return index.flatten(0, 1), factor.flatten(0, 1)

    def sums(self, index: Tensor, factor: Tensor) -> Tensor:
        """The weighted sums of rows, [Q, h, D]."""
        rows, factors = index.flatten(0, 2), factor.flatten(0, 2)
        sums = F.embedding_bag(rows, self.table, per_sample_weights=factors, mode="sum")
        return sums.view(*index.shape[:3], -1).sum(0)


def _nearest_two(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two pixels along an axis next to each position, [2, ...], and their factors.

    The factor is 0 outside the map, and NaN for a position that is not finite, as in grid_sample.
    """
    low = position.floor()
    fraction = position - low
    pixels = torch.stack((low, low + 1))
    factors = torch.stack((1 - fraction, fraction)) * ((pixels >= 0) & (pixels < size))
    return pixels.detach().nan_to_num().clamp(min=0).minimum(size - 1).long(), factors


def _chunks(locations: Tensor) -> Iterator[tuple[int, slice]]:
    """Image and queries, a few at a time."""
    images, queries = locations.shape[:2]
    step = max(1, _POINTS_AT_ONCE // locations.shape[2:5].numel())
    for image in range(images):
        for first in range(0, queries, step):
            yield image, slice(first, first + step)
