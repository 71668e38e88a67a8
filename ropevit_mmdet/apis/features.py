"""The RoPE ViT of a birder checkpoint or of a detector, with its image preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from ropevit_mmdet._images import InputImage
from ropevit_mmdet.apis.detector import Detector, choose_device, collate
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.visualization.feature_maps import ImageFeatures
from ropevit_mmdet.visualization.features import block_features
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import identify, pretrain_size


class FeatureSource(NamedTuple):
    """A backbone in eval mode and its preprocessing.

    `prepare` takes RGB pixels [H, W, 3], uint8, and their name for errors; it returns the
    normalized image [1, 3, H', W'] and the pixels [H', W', 3] that it shows.
    """

    backbone: RoPEViT
    prepare: Callable[..., tuple[Tensor, np.ndarray]]


def load_features(
    checkpoint: str,
    config: Config | str | None = None,
    *,
    cfg_options: Sequence[str] | None = None,
    arch: str | Mapping[str, Any] | None = None,
    size: int | None = None,
    device: str | None = None,
) -> FeatureSource:
    """Loads the backbone of a checkpoint.

    Args:
        checkpoint: a checkpoint of a RoPE ViT (path, URL or `birder://NAME`), whose RoPE is fitted
            to the pretraining grid; or a detector's, whose test pipeline prepares images, with
            padding.
        config: of the detector, as in `Detector`; so are `cfg_options`.
        arch: of a RoPE ViT, as in `RoPEViT`; by default identified from the weights.
        size: the longer side of an image in pixels for a RoPE ViT, by default that of the training;
            both sides are rounded to patches.
        device: as PyTorch names it; by default the first GPU, else the CPU.

    Raises:
        UserError: a checkpoint without image size or statistics, or a detector without a RoPEViT.
    """
    if config is not None or cfg_options:
        detector = Detector(checkpoint, config=config, cfg_options=cfg_options, device=device)
        return _of_detector(detector)
    content = read_checkpoint(resolve_weights(checkpoint))
    if content.origin == "mmengine":
        return _of_detector(Detector(checkpoint, device=device))
    resolved = resolve_arch(arch) if arch else identify(content)[1]
    trained = pretrain_size(content, resolved)
    if trained is None or content.rgb_stats is None:
        raise UserError(f"{checkpoint} does not show the size or the statistics of its images")
    backbone = RoPEViT(resolved, pretrain_img_size=trained)
    backbone.load_pretrained(checkpoint)
    backbone = backbone.to(choose_device(device)).eval()
    return _of_encoder(backbone, content.rgb_stats, size or max(trained))


def image_features(
    source: FeatureSource, images: Iterable[InputImage], **choice: Any
) -> list[ImageFeatures]:
    """The features of images; `choice` are blocks and patch, as in `block_features`."""
    features = []
    for image in images:
        inputs, pixels = source.prepare(image.pixels, image.path)
        blocks = block_features(source.backbone, inputs, **choice)
        features.append(ImageFeatures(image.path.name, pixels, blocks))
    return features


def denormalize(image: Tensor, preprocessor: Any) -> np.ndarray:
    """Converts the output [3, H, W] of a data preprocessor back into RGB pixels [H, W, 3]."""
    if preprocessor._enable_normalize:
        image = image * preprocessor.std + preprocessor.mean
    pixels = image.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
    # Pipelines load BGR; only the preprocessor converts channels.
    return pixels if preprocessor._channel_conversion else pixels[:, :, ::-1].copy()


def _of_encoder(
    backbone: RoPEViT, stats: Mapping[str, Sequence[float]], longer: int
) -> FeatureSource:
    device = next(backbone.parameters()).device
    mean, std = (torch.tensor(stats[key], device=device) for key in ("mean", "std"))

    def prepare(pixels: np.ndarray, name: object = None) -> tuple[Tensor, np.ndarray]:
        height, width = pixels.shape[:2]
        scale = longer / max(height, width) / backbone.patch_size
        sides = [max(1, round(scale * side)) * backbone.patch_size for side in (width, height)]
        resized = np.array(Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC))
        image = torch.from_numpy(resized).to(device) / 255
        return ((image - mean) / std).permute(2, 0, 1)[None], resized

    return FeatureSource(backbone, prepare)


def _of_detector(detector: Detector) -> FeatureSource:
    backbone, preprocessor = detector.model.backbone, detector.model.data_preprocessor
    if not isinstance(backbone, RoPEViT):
        raise UserError(f"the detector's backbone is a {type(backbone).__name__}, not a RoPEViT")

    def prepare(pixels: np.ndarray, name: object = None) -> tuple[Tensor, np.ndarray]:
        prepared = detector.prepare(pixels[:, :, ::-1], name)
        image = preprocessor(collate([prepared]), False)["inputs"]
        return image, denormalize(image[0], preprocessor)

    return FeatureSource(backbone, prepare)
