"""Fast paths and workarounds for CPUs, as plain calls; each equals the plain layer up to rounding.

On other devices, in training and while a graph is traced, they do nothing but call the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from ropevit_mmdet.models.layers.rope import Segment

if TYPE_CHECKING:
    from ropevit_mmdet.models.layers.block import Block

# Tokens per piece: four windows of 16 x 16 patches with their special tokens. The hidden channels
# of their MLP stay in the cache of the CPU: faster, and with a lower peak of memory.
PIECE_TOKENS = 1100
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`nn.Linear`, by oneDNN where no gradient is needed.

    In float32 PyTorch calls the BLAS, which copies the bias first and leaves the activation to
    another pass; oneDNN fuses both. `torch.compile` picks the same operator (torch 2.7 to 2.15,
    `torch/_inductor/mkldnn_ir.py`).
    """

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[..., in_features] to [..., out_features], with GELU applied on request."""
        if _uses_onednn(x, self.weight):
            activation: tuple[str, list, str] = ("gelu", [], "none") if gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *activation)
        x = super().forward(x)
        return F.gelu(x) if gelu else x


def linear_activation(linear: Linear, act: nn.Module, x: Tensor) -> Tensor:
    """`act(linear(x))`, in one call for GELU."""
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return linear(x, gelu=True)
    return act(linear(x))


def conv_with_spare_columns(
    forward: Callable[[Tensor], Tensor], conv: nn.Conv2d, x: Tensor
) -> Tensor:
    """`forward(x)` of a convolution; correct for narrow outputs in bfloat16, too.

    With AMX, oneDNN (PyTorch 2.15) returns uninitialized memory for one or two columns: two more
    columns are computed and cut off.
    """
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or not half:
        return forward(x)
    stride = conv.stride[1]
    columns = (x.shape[-1] + 2 * conv.padding[1] - conv.kernel_size[1]) // stride + 1  # type: ignore[operator]
    return forward(F.pad(x, (0, 2 * stride)))[..., :columns]


def can_run_in_pieces(block: Block, x: Tensor, *, checkpointed: bool) -> bool:
    """Whether a block may process `x` in pieces: nothing but the drop path, which pieces share, is
    random, and nothing is kept for a backward pass.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    random = block.training and block.has_dropout
    kept = torch.is_grad_enabled() and not checkpointed
    return x.device.type == "cpu" and not (tracing or random or kept)


def run_in_pieces(
    block: Block, x: Tensor, segments: Sequence[Segment], *, checkpointed: bool
) -> Tensor:
    """`block(x, segments)` by pieces of about `PIECE_TOKENS` tokens.

    Complete windows pass attention and MLP together. A window larger than a piece attends in one
    call, and only its MLP is divided.
    """
    run = _call
    if checkpointed:
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    limit = max(1, PIECE_TOKENS // len(x))
    pieces = [piece for segment in segments for piece in _divide(segment, limit)]
    first, second = block.drop_path.sample(x), block.drop_path.sample(x)
    outputs = []
    for part, piece in zip(x.split([p.windows * p.tokens for p in pieces], dim=1), pieces):
        if part.shape[1] <= limit:
            outputs.append(run(block.residuals, part, [piece], first, second))
        else:
            attended = run(block.add_attention, part, [piece], first)
            outputs += [run(block.add_mlp, p, second) for p in attended.split(limit, dim=1)]
    return torch.cat(outputs, dim=1)


def _divide(segment: Segment, limit: int) -> list[Segment]:
    """Segments of complete windows, each of at most `limit` tokens or of a single window."""
    step = max(1, limit // segment.tokens)
    starts = range(0, segment.windows, step)
    return [segment._replace(windows=min(step, segment.windows - start)) for start in starts]


def _call(function: Callable, *args: object) -> Tensor:
    return function(*args)


def _uses_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and not torch.is_grad_enabled()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


if _HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(
        x_shape: Sequence[int], weight_shape: Sequence[int], *args: object, **kwargs: object
    ) -> int:
        """For PyTorch's FLOP counter, which does not know the operator."""
        return 2 * math.prod(x_shape) * weight_shape[0]
