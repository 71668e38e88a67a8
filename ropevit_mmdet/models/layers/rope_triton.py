"""A Triton kernel for `rope.apply_rope` on a GPU, forward and backward.

PyTorch's operators pass a bfloat16 tensor through memory eight times; the kernel reads it once and
writes it once. It computes in float32; products and sum may round once less.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from ropevit_mmdet.models.layers._tracing import is_traced

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with PyTorch for NVIDIA and AMD GPUs on Linux
    triton = None


class ApplyRope(torch.autograd.Function):
    """`rope.apply_rope` as one kernel; the gradient is the transposed operation."""

    @staticmethod
    def forward(
        ctx, x: Tensor, cos: Tensor, sin: Tensor, rotation: str, transposed: bool = False
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotation, ctx.transposed = rotation, transposed
        return launch(x, cos, sin, rotation, transposed=transposed)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = ApplyRope.apply(grad, *ctx.saved_tensors, ctx.rotation, not ctx.transposed)
        return grad, None, None, None, None


def launch(x: Tensor, cos: Tensor, sin: Tensor, rotation: str, *, transposed: bool) -> Tensor:
    """Runs the kernel on x [n, N, h, D], of any strides, with tables [N, 1, D] in float32.

    Raises:
        ValueError: tables of another number of tokens: the kernel would read beyond them.
    """
    count, tokens, heads, dim = x.shape
    if cos.shape != (tokens, 1, dim) or sin.shape != cos.shape:
        raise ValueError(f"rope tables {[*cos.shape]} do not fit tokens {[*x.shape]}")
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return out
    with torch.cuda.device_of(x):
        _rope_kernel[(count * tokens,)](
            x, out, cos.contiguous(), sin.contiguous(), tokens, *x.stride()[:3], heads,
            dim=dim, half=dim // 2, heads_block=triton.next_power_of_2(heads),
            dim_block=triton.next_power_of_2(dim), interleaved=rotation == "interleaved",
            transposed=transposed,
        )  # fmt: skip
    return out


def is_supported(x: Tensor) -> bool:
    """Whether the kernel takes this tensor: on a GPU, not float64, and not while tracing."""
    return (
        type(x) is Tensor  # no FakeTensor, DTensor ...
        and x.device.type == "cuda"
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not is_traced()  # inductor writes its own
        and _compiles(x.device.index, x.dtype)
    )


@cache
def _compiles(device: int, dtype: torch.dtype) -> bool:
    """Whether Triton can compile the kernel, which needs a C compiler; warns once if not."""
    reason = "the package triton is not installed"
    if triton is not None:
        x = torch.ones(1, 1, 1, 4, device=f"cuda:{device}", dtype=dtype)
        table = torch.ones(1, 1, 4, device=x.device)
        try:
            launch(x, table, table, "standard", transposed=False)
            return True
        except Exception as error:  # a compiler's failure may be anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    message = f"no Triton kernel for RoPE, PyTorch's slower operators replace it: {reason}"
    warnings.warn(message, stacklevel=2)
    return False


if triton is not None:

    @triton.jit
    def _rope_kernel(
        x, out, cos, sin, tokens, image_stride, token_stride, head_stride, heads,
        dim: tl.constexpr, half: tl.constexpr, heads_block: tl.constexpr, dim_block: tl.constexpr,
        interleaved: tl.constexpr, transposed: tl.constexpr,
    ):  # fmt: skip
        """One token: the channels of all its heads."""
        row = tl.program_id(0).to(tl.int64)
        token = row % tokens
        head = tl.arange(0, heads_block)[:, None]
        channel = tl.arange(0, dim_block)[None, :]
        if interleaved:
            partner = channel ^ 1
        else:
            partner = tl.where(channel < half, channel + half, channel - half)
        inside = channel < dim
        mask = inside & (head < heads)

        cosine = tl.load(cos + token * dim + channel, mask=inside, other=0.0)
        # The partner is weighted by the sine of the channel; in the gradient, by its own.
        source = partner if transposed else channel
        sine = tl.load(sin + token * dim + source, mask=inside, other=0.0)
        start = x + (row // tokens) * image_stride + token * token_stride + head * head_stride
        own = tl.load(start + channel, mask=mask, other=0.0).to(tl.float32)
        other = tl.load(start + partner, mask=mask, other=0.0).to(tl.float32)
        result = own * cosine + other * sine
        place = out + row * heads * dim + head * dim + channel
        tl.store(place, result.to(out.dtype.element_ty), mask=mask)
