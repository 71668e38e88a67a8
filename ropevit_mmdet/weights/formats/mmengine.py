"""mmengine's checkpoints: a detector with our backbone, or the weights of that backbone only."""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ropevit_mmdet.compat.checkpoint import embedded_config
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import resolve_arch


def matches(weights: Container[str]) -> bool:
    """Whether weights have our names, with either stem."""
    stems = ("patch_embed.proj.weight", "patch_embed.proj.0.weight")
    return "blocks.0.norm1.weight" in weights and any(stem in weights for stem in stems)


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`; architecture and normalization by the config of the run."""
    meta = metadata.get("meta")
    fields = dict(origin="mmengine", state=dict(weights), head={}, meta=meta)
    try:
        model = embedded_config(metadata, "").get("model") or {}
        model = model.get("detector", model)  # of semi-supervised training
        return fields | _backbone(model["backbone"]) | dict(rgb_stats=_rgb_stats(model))
    except (UserError, LookupError, TypeError, AttributeError):  # none, or one that is no literals
        return fields


def _backbone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture and image size of the pretraining, of the patches that the weights have."""
    settings = settings.get("backbone", settings)  # of a FrozenBackbone
    if type_name(settings) != "RoPEViT":
        return {}
    arch = resolve_arch(settings.get("arch", "rope_vit_reg4_b14"))
    patch = settings.get("patch_size") or arch.patch_size
    size = settings.get("pretrain_img_size", 224)
    sides = (size, size) if isinstance(size, int) else size
    img_size = tuple(side // arch.patch_size * patch for side in sides)
    return dict(stated=replace(arch, patch_size=patch), img_size=img_size)


def _rgb_stats(model: Mapping[str, Any]) -> dict[str, tuple[float, ...]] | None:
    settings = model.get("data_preprocessor") or {}
    if not settings.get("bgr_to_rgb"):
        return None
    return {key: tuple(value / 255 for value in settings[key]) for key in ("mean", "std")}
