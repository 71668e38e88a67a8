"""Boxes under automatic mixed precision: decoded in float32 from what the heads return.

mmdet makes anchors and points in the dtype of the scores, and RoIs in that of the feature maps.
bfloat16 has 8 significant bits: a box near pixel 1000 would be off by 4 to 8 pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def float32_decoding(model: nn.Module) -> list[RemovableHandle]:
    """Has a detector's heads return float32, and its RoI extractors read float32 feature maps.

    Convolutions stay in half precision. Returns a handle per hook that was added.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

    handles = []
    for module in model.modules():
        if isinstance(module, (BaseDenseHead, BBoxHead)):
            handles.append(module.register_forward_hook(_widen_output))
        elif isinstance(module, BaseRoIExtractor):
            handles.append(module.register_forward_pre_hook(_widen_input))
    return handles


def _widen_output(module: nn.Module, args: Any, output: Any) -> Any:
    return _widened(output)


def _widen_input(module: nn.Module, args: Any) -> Any:
    return _widened(args)


def _widened(values: Any) -> Any:
    """The same tensors, or lists and tuples of them, with half precision made float32."""
    if isinstance(values, Tensor):
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    if isinstance(values, (list, tuple)):
        return type(values)(_widened(value) for value in values)
    return values
