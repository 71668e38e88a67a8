"""timm's checkpoints of class `Eva`, its plain ViTs with RoPE, `.safetensors` and `.pth`.

Source: timm 1.0.31, `timm/models/eva.py`. Next to a file of its hub, `config.json` has the name.
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet.weights.formats import _tensors

# Weights of a classifier's head, which a detector has no use for.
IGNORED = ("head.", "fc_norm.", "attn_pool.")

KEYS = (  # timm's name -> ours
    (r"^reg_token$", "reg_tokens"),
    (r"^norm_pre\.", "pre_norm."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias"),
)
# What other ViTs of timm, which have no RoPE, do not have; one of them is in each file.
_PARTS = ("gamma_1", "attn.q_bias", "attn.q_proj.weight")
_MARKS = ("norm_pre.weight", *(f"blocks.0.{part}" for part in _PARTS))


def matches(weights: Container[str]) -> bool:
    """Whether weights have the names that timm gives those of an `Eva`."""
    return "blocks.0.norm1.weight" in weights and any(mark in weights for mark in _MARKS)


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`."""
    state, head = _tensors.renamed(weights, KEYS, IGNORED)
    head = {key.replace("fc_norm.", "embedding_norm."): value for key, value in head.items()}
    _split(state)
    _tensors.fuse_qkv(state)
    config = metadata.get("config.json") or {}
    published = config.get("pretrained_cfg") or {}
    return dict(
        origin="timm",
        state=state,
        head=head,
        img_size=_tensors.square_size(state),
        rgb_stats=_tensors.stats_of(published.get("mean"), published.get("std")),
        stated=config.get("architecture"),
    )


def _split(state: dict[str, Tensor]) -> None:
    """Splits what timm packs: gate and value of SwiGLU, frequencies by block, tokens in order."""
    for key in [key for key in state if ".mlp.fc1." in key]:
        block, _, kind = key.partition(".mlp.fc1.")
        out = state.get(f"{block}.mlp.fc2.weight")
        if out is not None and len(state[key]) == 2 * out.shape[1]:
            gate, value = state.pop(key).chunk(2)
            state |= {f"{block}.mlp.fc1_g.{kind}": gate, f"{block}.mlp.fc1_x.{kind}": value}
    if "rope.freqs" in state:
        freqs = state.pop("rope.freqs")  # [2, blocks, h, D/2]
        state |= {f"blocks.{i}.attn.rope.freqs": freqs[:, i] for i in range(freqs.shape[1])}
    size = _tensors.square_size(state)
    if size and "reg_tokens" in state and "cls_token" in state:
        embed, special = state["pos_embed"], 1 + state["reg_tokens"].shape[1]
        patch = state["patch_embed.proj.weight"].shape[-1]
        if embed.shape[1] == special + size[0] * size[1] // patch**2:  # the class token is first
            order = [*range(1, special), 0, *range(special, embed.shape[1])]
            state["pos_embed"] = embed[:, torch.tensor(order)]
