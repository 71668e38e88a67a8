"""Fast paths and workarounds for CPUs, as plain calls; each equals the plain layer up to rounding.

On other devices, in training, while a graph is traced, and for modules that are hooked, replaced or
quantized, they do nothing but call the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from ropevit_mmdet.models.layers._tracing import is_traced
from ropevit_mmdet.models.layers.rope import Segment

if TYPE_CHECKING:
    from ropevit_mmdet.models.layers.block import Block

# Tokens per piece: four windows of 16 x 16 patches with their special tokens. The hidden channels
# of their MLP stay in the cache of the CPU: faster, and with a lower peak of memory.
PIECE_TOKENS = 1100
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_PLAIN = (Tensor, nn.Parameter, type(None))


def linear(layer: nn.Module, x: Tensor, act: nn.Module | None = None) -> Tensor:
    """`act(layer(x))` of [..., in_features], by oneDNN where no gradient is needed.

    In float32 PyTorch calls the BLAS, which copies the bias first and leaves the activation to
    another pass; oneDNN fuses both. `torch.compile` picks the same operator (torch 2.7 to 2.15,
    `torch/_inductor/mkldnn_ir.py`). A module that is not plain is called, as are its hooks.
    """
    if not _uses_onednn(layer, x):
        x = layer(x)
        return x if act is None else act(x)
    fused = type(act) is nn.GELU and act.approximate == "none" and _is_plain(act)
    activation: tuple[str, list, str] = ("gelu", [], "none") if fused else ("none", [], "")
    x = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, *activation)
    return x if fused or act is None else act(x)


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
    return forward(F.pad(x, (0, 2 * stride)))[..., :columns].contiguous()


def can_run_in_pieces(block: Block, x: Tensor, *, checkpointed: bool) -> bool:
    """Whether a block may process `x` in pieces: all its modules are plain, nothing but the drop
    path, which pieces share, is random, and nothing is kept for a backward pass.
    """
    if is_traced() or type(x) is not Tensor or x.device.type != "cpu":
        return False
    random = block.training and block.has_dropout
    kept = torch.is_grad_enabled() and not checkpointed
    parts = (part for part in block.modules() if part is not block)
    plain = hasattr(block.drop_path, "sample") and all(map(_is_plain, parts))
    return plain and not (random or kept)


def run_in_pieces(
    block: Block, x: Tensor, segments: Sequence[Segment], *, checkpointed: bool
) -> Tensor:
    """`block(x, segments)` by pieces of about `PIECE_TOKENS` tokens.

    Complete windows pass attention and MLP together. A window larger than a piece attends in one
    call, and only its MLP is divided.
    """
    run: Callable = lambda function, *args: function(*args)  # noqa: E731
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


def _uses_onednn(layer: nn.Module, x: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and not is_traced()
        and not torch.is_grad_enabled()
        and type(layer) is nn.Linear
        and type(x) is Tensor
        and x.device.type == layer.weight.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _is_plain(layer)
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is PyTorch's or ours, has plain tensors, and nothing observes its calls."""
    return (
        type(module).__module__.startswith(("torch.nn.modules.", "ropevit_mmdet."))
        and "forward" not in vars(module)
        and all(type(parameter) in _PLAIN for parameter in module._parameters.values())
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _has_any_global_hook()
    )
