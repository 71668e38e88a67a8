"""Settings that names and shapes of weights show, and an architecture as text for a config.

Weights do not show angles of the RoPE, eps of norms and, without QK-norm, the number of heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ropevit_mmdet.weights.architectures import Arch, names_of

# Settings that a model in eval mode does not depend on once it has its weights.
TRAINING_ONLY = (
    *("drop_path_rate", "drop_path_uniform", "layer_scale_init_value", "out_indices"),
    *("dropout", "attention_dropout", "projection_dropout", "k_bias"),
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
)
# Settings of the classifier's head, which a detector has no use for.
HEAD = tuple(
    field.name
    for field in dataclasses.fields(Arch)
    if field.name.startswith("attn_pool_") or field.name in ("mlp_head", "head_bias")
)
# Inferred settings that `Arch` has under another name: -> field, value if true.
_FLAGS = {
    "layer_scale": ("layer_scale_init_value", 1e-5),
    "prelu": ("act_layer_type", "prelu"),
    "stem_batch_norm": ("stem_norm_layer_type", "BatchNorm2d"),
    "mixed_rope": ("rope_style", "mixed"),
}


Weights = Mapping[str, Tensor]


def inferred_settings(
    state: Weights, head: Weights | None, img_size: tuple[int, int] | None
) -> dict[str, Any]:
    """The settings that weights show by their names and shapes; None for those not shown.

    `head` is None for the backbone of a detector, which may lack the final norm.
    """
    settings = _encoder_settings(state)
    if settings["mixed_rope"]:
        settings["num_heads"] = state["blocks.0.attn.rope.freqs"].shape[1]
    if settings["qk_norm"]:
        head_dim = len(state["blocks.0.attn.q_norm.weight"])
        settings["num_heads"] = settings["hidden_dim"] // head_dim
    if head is not None:
        normed = any(key.startswith("norm.") for key in state)
        pooled = not normed and any(key.startswith("embedding_norm.") for key in head)
        settings["post_norm"] = pooled or normed
        settings["norm_after_pool"] = pooled if pooled or normed else None
    special = settings["num_reg_tokens"] + int(settings["class_token"])
    if special and settings["abs_pos_embed"] and img_size:
        rows, columns = (side // settings["patch_size"] for side in img_size)
        more = state["pos_embed"].shape[1] - rows * columns
        settings["pos_embed_special_tokens"] = {special: True, 0: False}.get(more)
    return settings


def contradictions(arch: Arch, inferred: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ -> (of the architecture, of the weights)."""
    expected = dataclasses.asdict(arch)
    expected |= {flag: expected[field] == value for flag, (field, value) in _FLAGS.items()}
    expected["layer_scale"] = arch.layer_scale_init_value is not None
    return {
        key: (expected[key], value)
        for key, value in inferred.items()
        if value is not None and expected[key] != value
    }


def differences(arch: Arch, other: Arch) -> dict[str, tuple[Any, Any]]:
    """Settings of the backbone that differ -> (of the architecture, of the other)."""
    values = dataclasses.asdict(arch), dataclasses.asdict(other)
    unused = (*TRAINING_ONLY, *HEAD)
    return {
        key: (old, values[1][key])
        for key, old in values[0].items()
        if key not in unused and old != values[1][key]
    }


def arch_argument(arch: Arch) -> str:
    """The value of `arch=` in a config: birder's name, or the explicit settings."""
    names = names_of(arch) or names_of(arch, ignore=HEAD)
    return repr(names[0]) if names else f"dict({explicit_arguments(arch, {})})"


def explicit_arguments(arch: Arch, changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Arguments of `arch=dict(...)` after `contradictions`: settings other than the defaults."""
    settings = dataclasses.asdict(arch)
    defaults = {field.name: field.default for field in dataclasses.fields(Arch)}
    for key, (_, new) in changes.items():
        field, value = _FLAGS.get(key, (key, new))
        settings[field] = value if new or key not in _FLAGS else defaults[field]
    if "hidden_dim" in changes and "num_heads" not in changes:
        settings["num_heads"] = ...  # weights do not show it
    shown = {k: v for k, v in settings.items() if v != defaults[k] and k not in HEAD}
    return ", ".join(f"{k}={'...' if v is ... else repr(v)}" for k, v in shown.items())


def _encoder_settings(state: Weights) -> dict[str, Any]:
    """Settings that the blocks, the stem and the tokens show."""
    stem = state.get("patch_embed.proj.weight")
    swiglu = "blocks.0.mlp.fc1_g.weight" in state
    normed = "blocks.0.mlp.norm.weight" in state
    fc1 = state["blocks.0.mlp.fc1_g.weight" if swiglu else "blocks.0.mlp.fc1.weight"]
    registers, bias = state.get("reg_tokens"), state.get("blocks.0.attn.qkv.bias")
    return dict(
        patch_size=16 if stem is None else stem.shape[-1],
        stem_type="hmlp" if "patch_embed.proj.0.weight" in state else "patchify",
        stem_batch_norm="patch_embed.proj.1.running_mean" in state,
        num_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        hidden_dim=state["blocks.0.norm1.weight"].shape[0],
        mlp_dim=fc1.shape[0],
        num_reg_tokens=0 if registers is None else registers.shape[1],
        class_token="cls_token" in state,
        abs_pos_embed="pos_embed" in state,
        pre_norm="pre_norm.weight" in state,
        norm_layer_type="LayerNorm" if "blocks.0.norm1.bias" in state else "RMSNorm",
        mlp_layer_type=("Norm_SwiGLU_FFN" if normed else "SwiGLU_FFN") if swiglu else "FFN",
        prelu="blocks.0.mlp.act.weight" in state,
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        attn_norm="blocks.0.attn.norm.weight" in state,
        mixed_rope="blocks.0.attn.rope.freqs" in state,
        k_bias=bias is not None and bool(bias.chunk(3)[1].any()) or None,
    )
