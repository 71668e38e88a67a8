"""RoPEViTLayerDecay: learning rates that fall towards the input, no weight decay where it harms.

The rule is detectron2's for ViTDet (`modeling/backbone/utils.py` and `vit.py`,
`get_vit_lr_decay_rate`; after BEiT, arXiv 2106.08254): block i of n learns at rate ** (n - i) of
the base rate, the embedding at rate ** (n + 1), everything else at the base rate.
"""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.norm import LayerScale

_EMBEDDING = ("patch_embed", "pos_embed", "cls_token", "reg_tokens", "pre_norm")
_NO_DECAY = ("pos_embed", "cls_token", "reg_tokens")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RoPEViTLayerDecay:
    """Builds an optimizer wrapper whose learning rates decay by layer of the RoPEViT.

    Norms, biases, the position embedding, special tokens and LayerScale have no weight decay.
    Frozen parameters are skipped. A table of the layers is logged.

    Args:
        optim_wrapper_cfg: as in mmengine; `lr` of its `optimizer` is the base rate. Without a
            `weight_decay`, the optimizer's default applies.
        paramwise_cfg: `dict(layer_decay_rate=0.7)`; 1 for no decay.
    """

    def __init__(
        self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None
    ) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate: Any = paramwise_cfg.get("layer_decay_rate")
        valid = isinstance(self.rate, (int, float)) and 0 < self.rate <= 1
        if not valid or len(paramwise_cfg) > 1 or "lr" not in self.optimizer_cfg:
            raise UserError(
                "RoPEViTLayerDecay needs optimizer=dict(lr=...) and only paramwise_cfg="
                f"dict(layer_decay_rate=...), above 0 and at most 1; got {paramwise_cfg}"
            )

    def __call__(self, model: Any) -> Any:
        model = model.module if is_model_wrapper(model) else model
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": self.param_groups(model)})
        table = group_table(model, optimizer.param_groups)
        MMLogger.get_current_instance().info(f"\n{table}")
        wrapper = {"type": "OptimWrapper", **self.wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns a group per layer and weight decay; without one, the optimizer's applies."""
        prefix, backbone = _find_backbone(model)
        depth = len(backbone.blocks)
        undecayed = _undecayed(model)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            in_backbone = name.startswith(prefix)
            layer = layer_of(name.removeprefix(prefix), depth) if in_backbone else depth + 1
            lr = self.optimizer_cfg["lr"] * self.rate ** (depth + 1 - layer)
            decay = {"weight_decay": 0.0} if name in undecayed else {}
            group = dict(params=[], layer=layer, lr=lr, **decay)
            groups.setdefault((layer, not decay), group)["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]


def layer_of(name: str, depth: int) -> int:
    """The layer of a RoPEViT's parameter: 0 the embedding, i + 1 block i, else depth + 1."""
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return {**dict.fromkeys(_EMBEDDING, 0), "norm": depth + 1}[part]


def group_table(model: nn.Module, groups: list[dict[str, Any]]) -> str:
    """Layer, learning rate, weight decay and number of parameters, a line per group."""
    counts = torch.tensor([sum(p.numel() for p in group["params"]) for group in groups])
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        all_reduce(counts)  # of the shards of all processes
    lines = [f"{'layer':>5} {'lr':>10} {'weight decay':>12} {'parameters':>12}"]
    for group, count in zip(groups, counts.tolist(), strict=True):
        lines.append(
            f"{group['layer']:5} {group['lr']:10.3e} {group['weight_decay']:12g} {count:12,}"
        )
    return "\n".join(lines)


def _find_backbone(model: nn.Module) -> tuple[str, RoPEViT]:
    for name, module in model.named_modules():
        if isinstance(module, RoPEViT):
            return f"{name}." if name else "", module
    raise UserError(f"RoPEViTLayerDecay: there is no RoPEViT in {type(model).__name__}")


def _undecayed(model: nn.Module) -> set[str]:
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            special = name in _NO_DECAY and isinstance(module, RoPEViT)
            bias = "bias" in name.split("_")  # in_proj_bias of attention as well
            if special or bias or isinstance(module, (*_NORMS, LayerScale)):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names
