"""A linear layer that oneDNN computes on a CPU where no gradient is asked for.

In float32 PyTorch calls the BLAS, which copies the bias into the output first and leaves the
activation to another pass; oneDNN does both with the product. The operator is the one that
``torch.compile`` puts in the same place (torch 2.7 to 2.15, ``torch/_inductor/mkldnn_ir.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """``nn.Linear``, with GELU behind it if it is asked for; the same up to rounding."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if _by_onednn(x, self.weight):
            activation = ("gelu", [], "none") if gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *activation)
        x = super().forward(x)
        return F.gelu(x) if gelu else x


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
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
    def _operations(
        x_shape: Sequence[int], weight_shape: Sequence[int], *args: object, **kwargs: object
    ) -> int:
        """For PyTorch's counter, which knows the products of the BLAS alone."""
        return 2 * math.prod(x_shape) * weight_shape[0]
