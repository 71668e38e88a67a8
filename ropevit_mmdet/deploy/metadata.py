"""The metadata of an exported file: text fields, each one JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config

import ropevit_mmdet


def metadata_of(
    config: Config, model: Any, class_names: Sequence[str], part: str
) -> dict[str, str]:
    """Returns the fields; `mean` and `std` are in the order of `channel_order`."""
    neck = getattr(model, "neck", None)
    fields = {
        "made_by": f"ropevit_mmdet {ropevit_mmdet.__version__}, torch {torch.__version__}",
        "config": config.filename and PureWindowsPath(config.filename).name,  # knows \ and /
        "part": part,
        "model": type(model).__name__,
        "patch_size": model.backbone.patch_size,
        "resize": resizing(config),
        **_normalization(model.data_preprocessor),
        "class_names": list(class_names),
        "strides": [model.backbone.patch_size] if neck is None else list(neck.strides),
    }
    if part == "detector":
        cfg = model.bbox_head.test_cfg
        fields["score_thr"] = cfg.get("score_thr", 0)
        fields["iou_threshold"] = cfg.nms.iou_threshold
        fields["max_per_img"] = cfg.max_per_img
    return {key: json.dumps(value) for key, value in fields.items()}


def resizing(config: Config) -> dict[str, Any] | None:
    """Returns `scale` (width, height) and `keep_ratio` of a test pipeline of `Resize` only."""
    steps = [dict(step) for step in get_test_pipeline_cfg(config.copy())]
    for step in steps:
        step["type"] = step["type"].removeprefix("mmdet.")
    steps = [step for step in steps if not step["type"].startswith(("Load", "Pack"))]
    if not steps:
        return {"scale": None, "keep_ratio": True}
    step = steps[0]
    if len(steps) > 1 or step.pop("type") != "Resize" or "scale" not in step:
        return None
    scale, keep_ratio = step.pop("scale"), step.pop("keep_ratio", False)
    scale = [scale, scale] if isinstance(scale, int) else [int(side) for side in scale]
    return None if step else {"scale": scale, "keep_ratio": keep_ratio}


def _normalization(preprocessor: Any) -> dict[str, Any]:
    normalizes = hasattr(preprocessor, "mean")
    mean = preprocessor.mean.flatten().tolist() if normalizes else [0.0]
    std = preprocessor.std.flatten().tolist() if normalizes else [1.0]
    return {
        "channel_order": "RGB" if preprocessor._channel_conversion else "BGR",  # mmdet reads BGR
        "mean": mean * (3 // len(mean)),
        "std": std * (3 // len(std)),
        "pad_size_divisor": preprocessor.pad_size_divisor,
        "pad_value": preprocessor.pad_value,
    }
