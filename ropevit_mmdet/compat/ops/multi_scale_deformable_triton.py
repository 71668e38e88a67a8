"""A Triton kernel for multi-scale deformable attention on a GPU, forward and backward.

It reads the samples and sums them in registers, in float32, or float64 for values in float64.
Shapes as in `multi_scale_deformable.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ropevit_mmdet.compat.ops._kernels import working_dtype

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with PyTorch for NVIDIA and AMD GPUs on Linux
    triton = None

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TILE = 1024  # numbers of the output per program


class TritonAttention(torch.autograd.Function):
    """Multi-scale deformable attention as one kernel, forward and backward."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        inputs = [tensor.contiguous() for tensor in (value, shapes, starts, locations, weights)]
        ctx.save_for_backward(*inputs)
        output = value.new_empty(*locations.shape[:3], value.shape[3])
        _launch(inputs, output)
        return output.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, _, _, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value, dtype=working_dtype(value.dtype))  # of atomic sums
        grads = torch.empty_like(locations), torch.empty_like(weights)
        _launch(ctx.saved_tensors, grad.contiguous(), grad_value, *grads)
        return grad_value.to(value.dtype), None, *grads


def is_supported(value: Tensor, reference: Callable[..., Tensor]) -> bool:
    """Whether the kernel takes these values: on a GPU where it equals `reference`.

    Atomic sums are not deterministic.
    """
    return (
        value.device.type == "cuda"
        and value.dtype in DTYPES
        and not torch.are_deterministic_algorithms_enabled()
        and _works(value.device.index, value.dtype, reference)
    )


@cache
def _works(device: int, dtype: torch.dtype, reference: Callable[..., Tensor]) -> bool:
    """Whether Triton compiles the kernels and they compute the right results; warns once if not."""
    reason = "the package triton is not installed"
    if triton is not None:
        try:
            with torch.autocast("cuda", enabled=False):
                _check(torch.device("cuda", device), dtype, reference)
            return True
        except Exception as error:  # a compiler's failure may be anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    message = f"no Triton kernel for deformable attention, grid_sample replaces it: {reason}"
    warnings.warn(message, stacklevel=2)
    return False


@torch.enable_grad()
def _check(device: torch.device, dtype: torch.dtype, reference: Callable[..., Tensor]) -> None:
    """Compares results and gradients on a small input, with two levels and points outside.

    Raises:
        AssertionError: they differ.
    """
    exact = working_dtype(dtype)
    shapes = torch.tensor([[3, 2], [1, 4]], device=device)
    value, locations, weights = (
        torch.arange(math.prod(size), device=device, dtype=exact).sin().view(size)
        for size in ((1, 10, 2, 6), (1, 5, 2, 2, 3, 2), (1, 5, 2, 2, 3))
    )
    value, locations = value.to(dtype), locations + 0.4
    results = []
    for attend, sampled in ((TritonAttention.apply, value), (reference, value.to(exact))):
        leaves = [leaf.detach().requires_grad_() for leaf in (sampled, locations, weights)]
        output = attend(leaves[0], shapes, *leaves[1:])
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
        results.append([tensor.to(dtype) for tensor in (output, *gradients)])
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)


def _launch(inputs: Sequence[Tensor], output: Tensor, *grads: Tensor) -> None:
    """Runs the kernel, a tile of rows (image, query, head) per program.

    Fills `output`; with `grads`, `output` is its gradient, and they are filled.
    """
    value, _, _, locations, _ = inputs
    rows, dim = locations.shape[:3].numel(), value.shape[3]
    if not rows * dim:
        return
    dim_block = triton.next_power_of_2(dim)
    row_block = max(1, _TILE // dim_block)
    with torch.cuda.device_of(value):
        _kernel[(triton.cdiv(rows, row_block),)](
            *inputs, output, *(grads or 3 * [output]), rows, *value.shape[1:3],
            locations.shape[1], *locations.shape[3:5], dim=dim, row_block=row_block,
            dim_block=dim_block, backward=bool(grads),
            exact=tl.float64 if value.dtype == torch.float64 else tl.float32,
        )  # fmt: skip


if triton is not None:

    @triton.jit
    def _kernel(
        value, shapes, starts, locations, weights, output, grad_value, grad_locations, grad_weights,
        rows, tokens, heads, queries, levels, points, dim: tl.constexpr, row_block: tl.constexpr,
        dim_block: tl.constexpr, backward: tl.constexpr, exact: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
        channel = tl.arange(0, dim_block)[None, :]
        exists = row < rows
        present = exists[:, None] & (channel < dim)
        # Of the first token; the next one is `heads * dim` numbers further.
        first = ((row // heads // queries * tokens * heads + row % heads) * dim)[:, None] + channel
        target = output + row[:, None] * dim + channel
        if backward:
            total = tl.load(target, mask=present, other=0.0).to(exact)  # the gradient
        else:
            total = tl.zeros([row_block, dim_block], exact)
        for level in range(levels):
            height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
            start = tl.load(starts + level)
            for point in range(points):
                place = (row * levels + level) * points + point
                x = tl.load(locations + 2 * place, mask=exists, other=0.0).to(exact)
                y = tl.load(locations + 2 * place + 1, mask=exists, other=0.0).to(exact)
                weight = tl.load(weights + place, mask=exists, other=0.0).to(exact)
                x, y = x * width.to(exact) - 0.5, y * height.to(exact) - 0.5
                grad_x = tl.zeros([row_block], exact)
                grad_y = tl.zeros([row_block], exact)
                grad_weight = tl.zeros([row_block], exact)
                for corner in tl.static_range(4):
                    column, factor_x, inside_x = _neighbour(x, width, corner % 2)
                    line, factor_y, inside_y = _neighbour(y, height, corner // 2)
                    token = start + line * width + column
                    offset = first + (token * heads * dim)[:, None]
                    mask = present & (inside_x & inside_y)[:, None]
                    sample = tl.load(value + offset, mask=mask, other=0.0).to(exact)
                    factor = factor_x * factor_y
                    if backward:
                        product = tl.sum(total * sample, axis=1)
                        grad_x += (2 * (corner % 2) - 1) * factor_y * product
                        grad_y += (2 * (corner // 2) - 1) * factor_x * product
                        grad_weight += factor * product
                        part = (weight * factor)[:, None] * total
                        tl.atomic_add(grad_value + offset, part, mask=mask, sem="relaxed")
                    else:
                        total += (weight * factor)[:, None] * sample
                if backward:
                    grad_x *= weight * width.to(exact)
                    grad_y *= weight * height.to(exact)
                    tl.store(grad_locations + 2 * place, grad_x, mask=exists)
                    tl.store(grad_locations + 2 * place + 1, grad_y, mask=exists)
                    tl.store(grad_weights + place, grad_weight, mask=exists)
        if not backward:
            tl.store(target, total, mask=present)

    @triton.jit
    def _neighbour(position, size, second: tl.constexpr):
        """The first or second pixel next to positions along an axis: index, factor, existence."""
        low = tl.floor(position)
        pixel = low + second
        inside = (pixel >= 0) & (pixel < size)
        factor = position - low if second else 1 - (position - low)
        return tl.where(inside, pixel, 0).to(tl.int64), factor, inside
