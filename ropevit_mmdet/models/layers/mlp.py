"""MLPs of the transformer block, and the activations by birder's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ropevit_mmdet.models.layers._cpu import linear
from ropevit_mmdet.models.layers.norm import norm_layer
from ropevit_mmdet.weights.architectures import Arch


class Mlp(nn.Module):
    """Linear, activation (by default GELU), linear."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.fc1 = nn.Linear(arch.hidden_dim, arch.mlp_dim)
        self.act = ACTIVATIONS[arch.act_layer_type or "gelu"]()
        self.drop = nn.Dropout(arch.dropout)
        self.fc2 = nn.Linear(arch.mlp_dim, arch.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        x = self.drop(linear(self.fc1, x, self.act))
        return self.drop(linear(self.fc2, x))


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202), by default with SiLU.

    `Norm_SwiGLU_FFN` normalizes the gated channels, as in NormFormer (arXiv 2110.09456).
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(arch.hidden_dim, arch.mlp_dim)
        self.fc1_x = nn.Linear(arch.hidden_dim, arch.mlp_dim)
        self.act = ACTIVATIONS[arch.act_layer_type or "silu"]()
        self.drop = nn.Dropout(arch.dropout)
        normed = arch.mlp_layer_type == "Norm_SwiGLU_FFN"
        self.norm = norm_layer(arch)(arch.mlp_dim) if normed else nn.Identity()
        self.fc2 = nn.Linear(arch.mlp_dim, arch.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        x = self.drop(self.act(linear(self.fc1_g, x)) * linear(self.fc1_x, x))
        return self.drop(linear(self.fc2, self.norm(x)))


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU in CLIP models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
}
