"""Checkpoints of DINOv3 by Hugging Face transformers (`DINOv3ViTModel`).

Source: transformers 5.24, `models/dinov3_vit`. `config.json` next to the file has the settings.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ropevit_mmdet.weights.formats import _tensors

IGNORED = ("embeddings.mask_token",)

KEYS = (  # transformers' name -> ours
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(?:model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_SETTINGS = dict(  # of `Arch` -> of config.json
    patch_size="patch_size",
    num_layers="num_hidden_layers",
    num_heads="num_attention_heads",
    hidden_dim="hidden_size",
    mlp_dim="intermediate_size",
    num_reg_tokens="num_register_tokens",
    norm_layer_eps="layer_norm_eps",
    rope_temperature="rope_theta",
    qkv_bias="query_bias",
    k_bias="key_bias",
    layer_scale_init_value="layerscale_value",
)
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}  # -> birder's name


def matches(weights: Iterable[str]) -> bool:
    """Whether weights have the names that transformers gives those of DINOv3."""
    tokens = "embeddings.patch_embeddings.weight" in weights
    return tokens and any(key.endswith("layer.0.layer_scale1.lambda1") for key in weights)


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`."""
    gated = any(".mlp.gate_proj." in key for key in weights)
    up = (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1.")
    weights = {key: value for key, value in weights.items() if value.numel()}  # no registers
    state, head = _tensors.renamed(weights, (*KEYS, up), IGNORED)
    _tensors.fuse_qkv(state)
    config = metadata.get("config.json") or {}
    images = metadata.get("preprocessor_config.json") or {}
    return dict(
        origin="transformers",
        state=state,
        head=head,
        rgb_stats=_tensors.stats_of(images.get("image_mean"), images.get("image_std")),
        stated=_settings(config) if config.get("model_type") == "dinov3_vit" else None,
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `Arch`; what config.json lacks is the default of transformers."""
    gated, act = config.get("use_gated_mlp", False), config.get("hidden_act", "gelu")
    act = _ACTIVATIONS.get(act, act)
    defaults = dict(num_register_tokens=0, rope_theta=100.0, layer_norm_eps=1e-5)
    defaults |= dict(query_bias=True, key_bias=False, layerscale_value=1.0)
    return dict(
        {key: (defaults | dict(config))[name] for key, name in _SETTINGS.items()},
        abs_pos_embed=False,
        rope_style="centered_separate",
        mlp_layer_type="SwiGLU_FFN" if gated else "FFN",
        act_layer_type=None if act == ("silu" if gated else "gelu") else act,
    )
