"""A whole detector as a graph for every image size and batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ropevit_mmdet.deploy.features import DynamicFeatures, pad_to_multiple
from ropevit_mmdet.deploy.heads import graph_class


class Normalization(nn.Module):
    """The data preprocessor's normalization of RGB pixels, uint8."""

    def __init__(self, preprocessor: Any) -> None:
        super().__init__()
        self.is_bgr = not preprocessor._channel_conversion  # mmdet reads BGR
        for key, default in (("mean", 0.0), ("std", 1.0)):
            value = getattr(preprocessor, key, torch.tensor(default))
            self.register_buffer(key, value.detach().clone().float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Takes images [B, 3, H, W]."""
        images = images.float()  # first: TensorRT only casts uint8
        images = images.flip(1) if self.is_bgr else images
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class DynamicDetector(nn.Module):
    """Detections in images that are not padded; shares the detector's modules."""

    def __init__(self, model: Any, *, normalize: bool = False, pasted: bool = False) -> None:
        super().__init__()
        graph, _ = graph_class(model)
        self.normalization: Any = Normalization(model.data_preprocessor) if normalize else None
        self.features = getattr(graph, "features", DynamicFeatures)(model)
        self.head = graph(model, pasted=True) if pasted else graph(model)
        self.outputs = self.head.outputs
        self.pad_size_divisor = int(model.data_preprocessor.pad_size_divisor)
        self.pad_value = float(model.data_preprocessor.pad_value)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Takes images [B, 3, H, W] of one size; boxes are in their pixels.

        Nothing is detected in an image with a NaN or infinite pixel; others of its batch stay.
        """
        images = self.normalization(images) if self.normalization else images
        is_finite = images.isfinite().flatten(1).all(1)  # [B]
        images = torch.where(is_finite[:, None, None, None], images, torch.zeros_like(images))
        size = (images.shape[-2], images.shape[-1])
        padded = pad_to_multiple(images, self.pad_size_divisor, self.pad_value)
        padded_size = (padded.shape[-2], padded.shape[-1])
        dets, labels, *masks = self.head(self.features(padded), size, padded_size)
        dets = torch.where(is_finite[:, None, None], dets, torch.zeros_like(dets))
        labels = torch.where(is_finite[:, None], labels, torch.full_like(labels, -1))
        found = (labels >= 0)[:, :, None, None]  # ONNX Runtime has no Where of bool
        return dets, labels, *(m & found if m.dtype == torch.bool else m * found for m in masks)
