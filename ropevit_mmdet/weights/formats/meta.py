"""Meta's own files of DINOv3 and of the Perception Encoder (core, lang, spatial).

Their code is on no package index: names and layouts are those that timm 1.0.31 converts
(`timm/models/eva.py`, `checkpoint_filter_fn` and `_convert_pe`). As timm and transformers do, the
RoPE's periods are computed in float32; those in a file of DINOv3 are rounded to bfloat16.
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet.weights.formats import _tensors

IGNORED = ("mask_token", "local_cls_norm.", "projectors.", "attn_pool.")

DINOV3_KEYS = (  # Meta's name -> ours
    (r"^storage_tokens$", "reg_tokens"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
PE_KEYS = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^class_embedding$", "cls_token"),
    (r"^ln_pre\.", "pre_norm."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def matches(weights: Container[str]) -> bool:
    """Whether weights have Meta's names; those of CLIP, without RoPE, end in a norm, too."""
    if "storage_tokens" in weights and "blocks.0.attn.qkv.weight" in weights:
        return True
    clip = "ln_post.weight" in weights and "attn_pool.probe" not in weights
    return "conv1.weight" in weights and "positional_embedding" in weights and not clip


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`."""
    if "storage_tokens" in weights:
        return dict(origin="Meta", **_read_dinov3(weights))
    state, head = _tensors.renamed(weights, PE_KEYS, (*IGNORED, "proj"))
    state["pos_embed"] = state["pos_embed"][None]
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"][None, None]
    size = _tensors.square_size(state)
    return dict(origin="Meta", state=state, head=head, img_size=size)


def _read_dinov3(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    state, head = _tensors.renamed(weights, DINOV3_KEYS, IGNORED)
    for key in [key for key in state if key.endswith(".qkv.bias_mask")]:
        bias = key.removesuffix("_mask")
        state[bias] = state[bias] * state.pop(key)
    periods = state.pop("rope_embed.periods", None)
    if periods is None:
        return dict(state=state, head=head)
    bands = len(periods)  # a quarter of the channels of a head
    expected = 100.0 ** (torch.arange(bands) / bands)
    shown = dict(num_heads=state["norm.weight"].numel() // (4 * bands))
    if not torch.allclose(periods.float().cpu(), expected, rtol=0.01):
        shown["rope_temperature"] = round(float(periods[-1]) ** (bands / (bands - 1)), 1)
    return dict(state=state, head=head, shown=shown)
