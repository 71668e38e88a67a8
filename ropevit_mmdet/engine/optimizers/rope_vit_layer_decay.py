"""RoPEViTLayerDecay: learning rates that fall towards the input, no weight decay where it harms.

The rule is detectron2's for ViTDet (`modeling/backbone/utils.py` and `vit.py`,
`get_vit_lr_decay_rate`; after BEiT, arXiv 2106.08254): block i of n learns at rate ** (n - i) of
the base rate, the embedding at rate ** (n + 1), everything else at the base rate.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones import FrozenBackbone, RoPEViT
from ropevit_mmdet.models.layers.norm import LayerScale
from ropevit_mmdet.models.layers.rope import MixedRope

_EMBEDDING = ("patch_embed", "pos_embed", "cls_token", "reg_tokens", "pre_norm")
_NO_DECAY = ("pos_embed", "cls_token", "reg_tokens")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RoPEViTLayerDecay:
    """Builds an optimizer wrapper whose learning rates decay by layer of the RoPEViT.

    Norms, biases, the position embedding, special tokens, LayerScale and learned frequencies of the
    RoPE have no weight decay.
    Frozen parameters are skipped. A table of the layers is logged.

    Args:
        optim_wrapper_cfg: as in mmengine; `lr` of its `optimizer` is the base rate. Without a
            `weight_decay`, the optimizer's default applies.
        paramwise_cfg: `dict(layer_decay_rate=0.7)`; 1 for no decay. `custom_keys` as in mmengine
            (`lr_mult`, `decay_mult` by a part of the name) for parameters outside the backbone.
    """

    def __init__(
        self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None
    ) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate: Any = paramwise_cfg.get("layer_decay_rate")
        self.custom_keys: Mapping[str, Any] = paramwise_cfg.get("custom_keys", {})
        valid = isinstance(self.rate, (int, float)) and 0 < self.rate <= 1
        valid &= paramwise_cfg.keys() <= {"layer_decay_rate", "custom_keys"}
        if not valid or "lr" not in self.optimizer_cfg:
            raise UserError(
                "RoPEViTLayerDecay needs optimizer=dict(lr=...) and only paramwise_cfg=dict("
                "layer_decay_rate=..., custom_keys=...), the rate above 0 and at most 1; got "
                f"{paramwise_cfg}"
            )

    def __call__(self, model: Any) -> Any:
        model = model.module if is_model_wrapper(model) else model
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": self.param_groups(model)})
        lines = [f"{'layer':>5} {'lr':>10} {'weight decay':>12}"]
        for group in optimizer.param_groups:
            lines.append(f"{group['layer']:5} {group['lr']:10.3e} {group['weight_decay']:12g}")
        MMLogger.get_current_instance().info("\n".join(["", *lines]))
        wrapper = {"type": "OptimWrapper", **self.wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns a group per layer and weight decay; without one, the optimizer's applies."""
        prefix, backbone = _find_backbone(model)
        depth = len(backbone.blocks)
        undecayed = _undecayed(model)
        groups: dict[tuple, dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            in_backbone = name.startswith(prefix)
            layer = layer_of(name.removeprefix(prefix), depth) if in_backbone else depth + 1
            custom = {} if in_backbone else self._custom(name)
            lr_mult = custom.get("lr_mult", 1.0)
            lr = self.optimizer_cfg["lr"] * self.rate ** (depth + 1 - layer) * lr_mult
            decay = {}
            if name in undecayed:
                decay = {"weight_decay": 0.0}
            elif "decay_mult" in custom and "weight_decay" in self.optimizer_cfg:
                decay = {"weight_decay": self.optimizer_cfg["weight_decay"] * custom["decay_mult"]}
            group = dict(params=[], layer=layer, lr=lr, **decay)
            key = (layer, -lr_mult, decay.get("weight_decay", math.inf))
            groups.setdefault(key, group)["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def _custom(self, name: str) -> Mapping[str, Any]:
        """The settings of the longest custom key in a parameter's name, as in mmengine."""
        keys = [key for key in self.custom_keys if key in name]
        return self.custom_keys[max(sorted(keys), key=len)] if keys else {}


def layer_of(name: str, depth: int) -> int:
    """The layer of a RoPEViT's parameter: 0 the embedding, i + 1 block i, else depth + 1."""
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return {**dict.fromkeys(_EMBEDDING, 0), "norm": depth + 1}[part]


def _find_backbone(model: nn.Module) -> tuple[str, RoPEViT]:
    for name, module in model.named_modules():
        backbone = module.backbone if isinstance(module, FrozenBackbone) else module
        if isinstance(backbone, RoPEViT):
            return f"{name}." if name else "", backbone
    raise UserError(f"RoPEViTLayerDecay: there is no RoPEViT in {type(model).__name__}")


def _undecayed(model: nn.Module) -> set[str]:
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            special = name in _NO_DECAY and isinstance(module, RoPEViT)
            bias = "bias" in name.split("_")  # in_proj_bias of attention as well
            if special or bias or isinstance(module, (*_NORMS, LayerScale, MixedRope)):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names
