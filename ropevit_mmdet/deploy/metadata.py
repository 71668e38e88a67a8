"""What a program needs to know beside the graph, as the text fields of an ONNX file.

Every value is JSON. `tools/onnx_predict.py` works by these fields alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

import ropevit_mmdet


def file_facts(
    config: Config, model: nn.Module, class_names: Sequence[str], part: str
) -> dict[str, str]:
    """The fields of a file that holds `part` of a model: 'features' or 'detector'.

    Colors are in the order of `channel_order`; `resize` is null where the config's test pipeline
    does something to images that is more than mmdet's `Resize`.
    """
    facts = {
        "made_by": f"ropevit_mmdet {ropevit_mmdet.__version__}, torch {torch.__version__}",
        "config": config.filename and config.filename.replace("\\", "/").rsplit("/", 1)[-1],
        "part": part,
        "model": type(model).__name__,
        "patch_size": model.backbone.patch_size,
        "resize": resizing(config),
        **_colors(model.data_preprocessor),
        "class_names": list(class_names),
    }
    neck = getattr(model, "neck", None)
    facts["strides"] = [model.backbone.patch_size] if neck is None else list(neck.strides)
    if part == "detector":
        cfg = model.bbox_head.test_cfg
        facts |= {
            "score_thr": cfg.get("score_thr", 0),
            "iou_threshold": cfg.nms.iou_threshold,
            "max_per_img": cfg.max_per_img,
        }
    return {key: json.dumps(value) for key, value in facts.items()}


def resizing(config: Config) -> dict[str, Any] | None:
    """How the config's test pipeline resizes: scale (width, height) in pixels, keep_ratio."""
    steps = [dict(step) for step in get_test_pipeline_cfg(config.copy())]
    changing = [
        step
        for step in steps
        if not step["type"].startswith(("Load", "mmdet.Load", "Pack", "mmdet.Pack"))
    ]
    if not changing:
        return {"scale": None, "keep_ratio": True}
    step = changing[0]
    known = {"type", "scale", "keep_ratio"}
    if len(changing) > 1 or step["type"] not in ("Resize", "mmdet.Resize") or set(step) - known:
        return None
    scale = step.get("scale")
    scale = [scale, scale] if isinstance(scale, int) else scale
    if scale is None:
        return None
    return {"scale": [int(side) for side in scale], "keep_ratio": step.get("keep_ratio", False)}


def _colors(preprocessor: nn.Module) -> dict[str, Any]:
    """How pixels of 0 to 255 become numbers, and how mmdet pads what comes out."""
    normalises = hasattr(preprocessor, "mean")
    mean = preprocessor.mean.flatten().tolist() if normalises else [0.0]
    std = preprocessor.std.flatten().tolist() if normalises else [1.0]
    swaps = preprocessor._channel_conversion  # mmdet's pipelines read BGR
    return {
        "channel_order": "RGB" if swaps else "BGR",
        "mean": mean * (3 // len(mean)),
        "std": std * (3 // len(std)),
        "pad_size_divisor": preprocessor.pad_size_divisor,
        "pad_value": preprocessor.pad_value,
    }
