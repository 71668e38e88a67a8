"""What weights show of their architecture, and how an architecture is written in a config.

Names and shapes tell most settings; angles of the rope, eps of the norms and, without QK-norm, the
number of heads do not show. Keys: birder 0.8.4, ``birder/net/rope_vit.py``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ropevit_mmdet.weights.architectures import Arch, names_of

_FACTS = (
    "patch_size stem_type num_layers hidden_dim mlp_dim num_reg_tokens class_token abs_pos_embed "
    "pre_norm norm_layer_type mlp_layer_type layer_scale qkv_bias qk_norm attn_norm"
).split()
# Settings that weights which are there, and a model that is not in training, do not depend on.
TRAINING_ONLY = tuple(
    "drop_path_rate drop_path_uniform dropout attention_dropout projection_dropout "
    "layer_scale_init_value rope_shift_coords rope_jitter_coords rope_rescale_coords "
    "out_indices".split()
)
# Settings of the classifier's head, which a detector has no use for.
HEAD = tuple(
    "attn_pool_head attn_pool_type attn_pool_num_heads attn_pool_special_tokens "
    "attn_pool_norm_eps attn_pool_act_layer_type mlp_head head_bias".split()
)

# Weights whose shape is looked at before a comparison with a model's: the axes that they have.
_AXES = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "reg_tokens": 3,
    "blocks.0.norm1.weight": 1,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc1_g.weight": 2,
    "blocks.0.attn.q_norm.weight": 1,
    "classifier.weight": 2,
    "classifier.3.weight": 2,
}


def check_axes(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights that ``facts_of`` and ``settings_of`` could not make sense of.

    Args:
        weights: those of the encoder under our names, of the head under birder's.

    Raises:
        ValueError: another number of axes, nothing along one of them, or a block without a number.
    """
    for key, axes in _AXES.items():
        if key in weights and (weights[key].ndim != axes or not weights[key].numel()):
            shape = tuple(weights[key].shape)
            raise ValueError(f"{source}: {key} is {shape}; a RoPE ViT's has {axes} axes, none of 0")
    for key in weights:
        if key.startswith("blocks.") and not re.match(r"blocks\.[0-9]{1,4}\.", key):
            raise ValueError(f"{source}: {key!r:.80} gives no number of a block")


def facts_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture settings that weights under our names show by their keys and shapes.

    Raises:
        ValueError: weights that every RoPE ViT has are missing.
    """
    stem = state.get("patch_embed.proj.weight")
    swiglu = "blocks.0.mlp.fc1_g.weight" in state
    fc1 = "blocks.0.mlp.fc1_g.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    for key in ("blocks.0.norm1.weight", fc1):
        if key not in state:
            raise ValueError(f"weights of a RoPE ViT without {key}")
    normed = "blocks.0.mlp.norm.weight" in state
    registers = state.get("reg_tokens")
    return dict(
        patch_size=16 if stem is None else stem.shape[-1],
        stem_type="hmlp" if "patch_embed.proj.0.weight" in state else "patchify",
        num_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        hidden_dim=state["blocks.0.norm1.weight"].shape[0],
        mlp_dim=state[fc1].shape[0],
        num_reg_tokens=0 if registers is None else registers.shape[1],
        class_token="cls_token" in state,
        abs_pos_embed="pos_embed" in state,
        pre_norm="pre_norm.weight" in state,
        norm_layer_type="LayerNorm" if "blocks.0.norm1.bias" in state else "RMSNorm",
        mlp_layer_type=("Norm_SwiGLU_FFN" if normed else "SwiGLU_FFN") if swiglu else "FFN",
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        attn_norm="blocks.0.attn.norm.weight" in state,
    )


def arch_facts(arch: Arch) -> dict[str, Any]:
    """The same settings as an architecture has them."""
    special = {"layer_scale": arch.layer_scale_init_value is not None}
    return {key: special.get(key, getattr(arch, key, None)) for key in _FACTS}


def settings_of(
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    img_size: tuple[int, int] | None,
) -> dict[str, Any]:
    """All that the weights of a whole network show, more than ``facts_of``.

    Args:
        state: weights of the encoder under our names.
        head: weights of the classifier under birder's.
        img_size: pixels, (height, width), where the file says it.

    Returns:
        Value per setting; None for one that these weights do not show.

    Raises:
        ValueError: see ``facts_of``.
    """
    found = facts_of(state)
    normed = any(key.startswith("norm.") for key in state)
    pooled = not normed and any(key.startswith("embedding_norm.") for key in head)
    found |= dict(
        post_norm=pooled or normed,
        norm_after_pool=pooled if pooled or normed else None,
        prelu="blocks.0.mlp.act.weight" in state,
        stem_batch_norm="patch_embed.proj.1.running_mean" in state,
        pos_embed_special_tokens=None,
        num_heads=None,
    )
    if found["qk_norm"]:
        found["num_heads"] = found["hidden_dim"] // state["blocks.0.attn.q_norm.weight"].numel()
    special = found["num_reg_tokens"] + int(found["class_token"])
    if special and found["abs_pos_embed"] and img_size:
        rows, columns = (side // found["patch_size"] for side in img_size)
        more = state["pos_embed"].shape[1] - rows * columns
        found["pos_embed_special_tokens"] = {special: True, 0: False}.get(more)
    return found


def contradictions(arch: Arch, found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings -> (of the architecture, of the file), where these differ."""
    wanted = arch_facts(arch) | dict(
        post_norm=arch.post_norm,
        norm_after_pool=arch.norm_after_pool,
        prelu=arch.act_layer_type == "prelu",
        stem_batch_norm=arch.stem_norm_layer_type == "BatchNorm2d",
        pos_embed_special_tokens=arch.pos_embed_special_tokens,
        num_heads=arch.num_heads,
    )
    return {
        key: (wanted[key], value)
        for key, value in found.items()
        if value is not None and wanted[key] != value
    }


def arch_argument(arch: Arch) -> str:
    """The value of ``arch=`` in a config, as source: birder's name, or the settings explicit."""
    names = names_of(arch) or names_of(arch, ignore=HEAD)
    return repr(names[0]) if names else f"dict({explicit(arch, {})})"


def explicit(arch: Arch, changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Arguments of ``arch=dict(...)``: the settings that are not birder's defaults, changed."""
    settings = dataclasses.asdict(arch)
    settings |= {key: new for key, (_, new) in changes.items() if key in settings}
    for key, field, value in (
        ("layer_scale", "layer_scale_init_value", 1e-5),
        ("prelu", "act_layer_type", "prelu"),
        ("stem_batch_norm", "stem_norm_layer_type", "BatchNorm2d"),
    ):
        if key in changes:
            settings[field] = value if changes[key][1] else None
    if "hidden_dim" in changes and "num_heads" not in changes:
        settings["num_heads"] = ...  # weights do not show it
    defaults = {field.name: field.default for field in dataclasses.fields(Arch)}
    shown = {k: v for k, v in settings.items() if v != defaults[k] and k not in HEAD}
    return ", ".join(f"{k}={'...' if v is ... else repr(v)}" for k, v in shown.items())
