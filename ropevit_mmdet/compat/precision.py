"""Boxes under automatic mixed precision: what mmdet's heads return is decoded in float32.

mmdet makes anchors and points in the dtype of the scores: bfloat16 has 8 significant bits, so that
a box near pixel 1000 is off by 4 to 8 pixels, and its RoI extractors give RoIs the dtype of the
maps. Convolutions stay in half precision; only what leaves the heads, and what RoIs are cut out of,
is widened.
"""

from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def install() -> None:
    """Have every dense head and box head of mmdet return float32, and every RoI extractor take it.

    Idempotent.
    """
    for head in (BaseDenseHead, BBoxHead):
        head.__call__ = _call_widened
    BaseRoIExtractor.__call__ = _call_with_widened


def widened(values: Any) -> Any:
    """The same tensors, or lists and tuples of them, with half precision made float32."""
    if isinstance(values, Tensor):
        return values.float() if values.dtype in HALF else values
    if isinstance(values, (list, tuple)):
        return type(values)(widened(value) for value in values)
    return values


def _call_widened(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return widened(nn.Module.__call__(self, *args, **kwargs))


def _call_with_widened(self: nn.Module, feats: Any, *args: Any, **kwargs: Any) -> Any:
    return nn.Module.__call__(self, widened(feats), *args, **kwargs)
