"""One Triton kernel that turns queries or keys on a GPU, forward and backward.

PyTorch's operators move a tensor of bfloat16 through the memory eight times to turn it; the kernel
reads it once and writes it once. What it computes is ``rope.rotate``, in float32 whatever the type
of the tensor; products and sum may round once less.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with PyTorch for NVIDIA and AMD GPUs on Linux
    triton = None

WAY_OUT = "PyTorch's operators do it, and take longer"


class Turn(torch.autograd.Function):
    """``rope.rotate`` as one kernel, of the same arguments; its gradient is the transposed turn."""

    @staticmethod
    def forward(
        ctx, x: Tensor, cos: Tensor, sin: Tensor, rotation: str, transposed: bool = False
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotation, ctx.transposed = rotation, transposed
        return launch(x, cos, sin, rotation, transposed=transposed)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        turned = Turn.apply(grad, *ctx.saved_tensors, ctx.rotation, not ctx.transposed)
        return turned, None, None, None, None


def launch(x: Tensor, cos: Tensor, sin: Tensor, rotation: str, *, transposed: bool) -> Tensor:
    """Turns x [n, N, h, D], of any strides, into a new tensor; the tables are [N, 1, D]."""
    count, tokens, heads, dim = x.shape
    if cos.shape != (tokens, 1, dim) or sin.shape != cos.shape:
        raise ValueError(f"tables {[*cos.shape]} do not belong to tokens {[*x.shape]}")
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return out
    with torch.cuda.device_of(x):
        _turn_kernel[(count * tokens,)](
            x, out, cos.contiguous(), sin.contiguous(), tokens, *x.stride()[:3], heads,
            dim=dim, half=dim // 2, heads_block=triton.next_power_of_2(heads),
            dim_block=triton.next_power_of_2(dim), interleaved=rotation == "interleaved",
            transposed=transposed,
        )  # fmt: skip
    return out


def can_turn(x: Tensor) -> bool:
    """Whether the kernel is for this tensor: on a GPU, not in float64, and outside of tracing."""
    return (
        type(x) is Tensor  # no FakeTensor, DTensor ...
        and x.device.type == "cuda"
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.compiler.is_compiling()  # which makes one of its own
        and not torch.jit.is_tracing()
        and _works(x.device.index, x.dtype)
    )


@cache
def _works(device: int, dtype: torch.dtype) -> bool:
    """Whether Triton can build the kernel here: it needs a C compiler. Said once where not."""
    try:
        if triton is None:
            raise RuntimeError("the package triton is not installed")
        x = torch.ones(1, 1, 1, 4, device=f"cuda:{device}", dtype=dtype)
        table = torch.ones(1, 1, 4, device=x.device)
        launch(x, table, table, "standard", transposed=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's failure may be anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"no kernel for rotary positions, {WAY_OUT}: {reason[0]}", stacklevel=2)
        return False
    return True


if triton is not None:

    @triton.jit
    def _turn_kernel(
        x,
        out,
        cos,
        sin,
        tokens,
        image_stride,
        token_stride,
        head_stride,
        heads,
        dim: tl.constexpr,
        half: tl.constexpr,
        heads_block: tl.constexpr,
        dim_block: tl.constexpr,
        interleaved: tl.constexpr,
        transposed: tl.constexpr,
    ):
        """One token: all of its heads' channels."""
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
        # A partner's share of a channel is the sine of the channel; in the gradient, its own.
        turned_by = partner if transposed else channel
        sine = tl.load(sin + token * dim + turned_by, mask=inside, other=0.0)
        start = x + (row // tokens) * image_stride + token * token_stride + head * head_stride
        own = tl.load(start + channel, mask=mask, other=0.0).to(tl.float32)
        other = tl.load(start + partner, mask=mask, other=0.0).to(tl.float32)
        turned = own * cosine + other * sine
        place = out + row * heads * dim + head * dim + channel
        tl.store(place, turned.to(out.dtype.element_ty), mask=mask)
