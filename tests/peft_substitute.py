"""The part of peft that the page on integrations uses, where peft is not installed."""

import re
import sys
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class LoraConfig:
    r: int
    lora_alpha: int
    target_modules: str


class BaseTunerLayer(nn.Module):
    """A frozen linear layer W with a trainable update B A, where B starts at zero."""

    def __init__(self, base_layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.scale = config.lora_alpha / config.r
        self.lora_A = nn.Parameter(torch.randn(config.r, base_layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, config.r))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return self.base_layer(x) + self.scale * update

    @torch.no_grad()
    def merge(self) -> None:
        self.base_layer.weight += self.scale * self.lora_B @ self.lora_A

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer


def inject_adapter_in_model(config: LoraConfig, model: nn.Module) -> None:
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if re.fullmatch(config.target_modules, name):
            model.set_submodule(name, BaseTunerLayer(layer, config))


def modules() -> dict[str, ModuleType]:
    """Entries of `sys.modules` for it."""
    names = ("peft", "peft.tuners", "peft.tuners.tuners_utils")
    return dict.fromkeys(names, sys.modules[__name__])
