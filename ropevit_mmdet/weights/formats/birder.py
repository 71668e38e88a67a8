"""birder's checkpoints, `.pt` and `.safetensors`, of a ViT or of a detector with one.

Source: birder 0.8.4, `birder/common/fs_ops.py` (fields) and `birder/net/rope_vit.py` (weights).
"""

import json
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from ropevit_mmdet.weights.formats import _tensors

# Weights of a classifier's head, which a detector has no use for.
IGNORED = ("classifier.", "attn_pool.", "embedding_norm.")

KEYS = (  # birder's name -> ours
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_embedding$", "pos_embed"),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pre_block\.\d+\.", "pre_norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer_scale_([12])\.gamma$", r".ls\1.gamma"),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.1\.", ".mlp.act."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
_JSON = ("signature", "class_to_idx", "rgb_stats", "config", "backbone_config")


def matches(weights: Container[str]) -> bool:
    """Whether weights have the names that birder gives those of a ViT."""
    return "encoder.block.0.norm1.weight" in weights


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Checkpoint`; metadata of safetensors are text in JSON."""
    fields = {
        key: json.loads(value) if key in _JSON and isinstance(value, str) else value
        for key, value in metadata.items()
    }
    stats, is_detector = fields.get("rgb_stats"), fields.get("task") == "object_detection"
    state, head = _tensors.renamed(weights, KEYS, IGNORED)
    return dict(
        origin="birder",
        state=state,
        head=head,
        is_detector=is_detector,
        img_size=_img_size(fields.get("signature")),
        rgb_stats={k: tuple(map(float, stats[k])) for k in ("mean", "std")} if stats else None,
        config=dict(fields.get("backbone_config" if is_detector else "config") or {}),
        class_to_idx={str(k): int(v) for k, v in (fields.get("class_to_idx") or {}).items()},
        version=fields.get("birder_version"),
    )


def _img_size(signature: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Pixels (height, width); None without a signature."""
    if not signature:
        return None
    height, width = signature["inputs"][0]["data_shape"][-2:]
    return int(height), int(width)
