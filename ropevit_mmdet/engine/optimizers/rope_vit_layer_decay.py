"""RoPEViTLayerDecay: learning rates that fall towards the input, no weight decay where it harms.

The rule is detectron2's for ViTDet (``modeling/backbone/utils.py`` and ``vit.py``,
``get_vit_lr_decay_rate``; after BEiT, arXiv 2106.08254): block i of n learns at
rate ** (n - i) of the base rate, the embedding at rate ** (n + 1), all else at the base rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.block import LayerScale

_EMBEDDING = ("patch_embed", "pos_embed", "cls_token", "reg_tokens", "pre_norm")
_NO_DECAY = ("pos_embed", "cls_token", "reg_tokens")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RoPEViTLayerDecay:
    """Builds an optimizer wrapper whose learning rates decay by layer of the RoPEViT.

    Weight decay is 0 on norms, biases, the position embedding, special tokens and LayerScale.
    Frozen parameters are left out. One table of layers is logged.

    Args:
        optim_wrapper_cfg: as mmengine has it; its ``optimizer`` gives the base rate as ``lr``, and
            may give ``weight_decay``, else it is the optimizer's own default.
        paramwise_cfg: ``dict(layer_decay_rate=0.7)``; 1 for no decay.

    Raises:
        ValueError: no RoPEViT in the model, a rate out of (0, 1], an unknown key, no ``lr``, or a
            parameter of the backbone that belongs to no layer.
    """

    def __init__(
        self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None
    ) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate = paramwise_cfg.pop("layer_decay_rate", None)
        if paramwise_cfg:
            raise ValueError(f"unknown key in paramwise_cfg: {next(iter(paramwise_cfg))!r}")
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ValueError(f"layer_decay_rate must be above 0 and at most 1, got {self.rate!r}")
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        if "lr" not in self.optimizer_cfg:
            raise ValueError("RoPEViTLayerDecay needs the base rate: optimizer=dict(lr=...)")

    def __call__(self, model: nn.Module) -> Any:
        model = model.module if is_model_wrapper(model) else model
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": self.param_groups(model)})
        counts = parameter_counts(model, optimizer.param_groups)
        MMLogger.get_current_instance().info("\n" + group_table(optimizer.param_groups, counts))
        wrapper = {"type": "OptimWrapper", **self.wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group per layer and weight decay; ``layer`` counts from 0, the embedding.

        Those that decay leave ``weight_decay`` to the optimizer.
        """
        prefix, backbone = _find_backbone(model)
        depth = len(backbone.blocks)
        undecayed = _undecayed(model)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = depth + 1
            if name.startswith(prefix):
                layer = layer_of(name.removeprefix(prefix), depth)
            decays = name not in undecayed
            group = groups.setdefault(
                (layer, decays),
                dict(
                    params=[],
                    layer=layer,
                    lr=self.optimizer_cfg["lr"] * self.rate ** (depth + 1 - layer),
                    **({} if decays else {"weight_decay": 0.0}),
                ),
            )
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter of RoPEViT: 0 the embedding, i + 1 block i, depth + 1 the norm.

    Raises:
        ValueError: a parameter that no rule reaches.
    """
    part, *rest = name.split(".")
    if part in _EMBEDDING:
        return 0
    if part == "blocks" and rest[0].isdigit() and int(rest[0]) < depth:
        return int(rest[0]) + 1
    if part == "norm":
        return depth + 1
    raise ValueError(f"layer decay: parameter {name!r} of the backbone belongs to no layer")


def group_table(groups: list[dict[str, Any]], counts: list[int]) -> str:
    """Layer, learning rate, weight decay and number of parameters, a line per group."""
    lines = [f"{'layer':>5} {'lr':>10} {'weight decay':>12} {'parameters':>12}"]
    for group, count in zip(groups, counts, strict=True):
        lines.append(
            f"{group['layer']:5} {group['lr']:10.3e} {group['weight_decay']:12g} {count:12,}"
        )
    return "\n".join(lines)


def parameter_counts(model: nn.Module, groups: list[dict[str, Any]]) -> list[int]:
    """How many parameters each group has; where FSDP spreads them, of all processes together."""
    counts = torch.tensor([sum(p.numel() for p in group["params"]) for group in groups])
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        all_reduce(counts)
    return counts.tolist()


def _find_backbone(model: nn.Module) -> tuple[str, RoPEViT]:
    """The prefix of the RoPEViT's parameters, and the RoPEViT."""
    for name, module in model.named_modules():
        if isinstance(module, RoPEViT):
            return f"{name}." if name else "", module
    raise ValueError(f"RoPEViTLayerDecay: there is no RoPEViT in {type(model).__name__}")


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that take no weight decay."""
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            special = name in _NO_DECAY and isinstance(module, RoPEViT)
            bias = "bias" in name.split("_")  # in_proj_bias of attention as well
            if special or bias or isinstance(module, (*_NORMS, LayerScale)):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names
