"""The RoPE ViT of a birder checkpoint or of a detector, with images as it takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from ropevit_mmdet.apis.predict import Predictor, choose_device
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.identify import identify
from ropevit_mmdet.weights.lookup import resolve_weights


@dataclass(frozen=True)
class FeatureSource:
    """A backbone in eval mode, and what turns RGB pixels [H, W, 3], uint8, into its input.

    `prepare` gives the normalised image [1, 3, H', W'] and the same as RGB pixels, as it is seen.
    """

    backbone: RoPEViT
    prepare: Callable[[np.ndarray], tuple[Tensor, np.ndarray]]


def from_checkpoint(
    checkpoint: str,
    arch: str | Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    device: str | None = None,
) -> FeatureSource:
    """The encoder of a birder checkpoint: a file, a URL or `birder://NAME`.

    An image is resized so that its longer side has `size` pixels, default the side that the
    weights were trained at, and both sides are whole patches. `arch` is as for `RoPEViT`, default
    what the file shows. On grids of another size, rope coordinates are fitted to the pretraining
    grid. Raises ValueError for a file that does not say all this, and for a detector's.
    """
    place = choose_device(device)
    content = read_checkpoint(resolve_weights(checkpoint))
    if content.origin != "birder":
        raise ValueError(f"{checkpoint} is of a detector: give its config before it")
    if content.img_size is None or content.rgb_stats is None:
        raise ValueError(f"{checkpoint} does not say for which images it was trained")
    backbone = RoPEViT(
        identify(content)[1] if arch is None else arch, pretrain_img_size=content.img_size
    )
    backbone.load_pretrained(checkpoint)
    backbone = backbone.to(place).eval()
    mean, std = (
        255 * torch.tensor(content.rgb_stats[key], device=place) for key in ("mean", "std")
    )
    longer = max(content.img_size) if size is None else size

    def prepare(pixels: np.ndarray) -> tuple[Tensor, np.ndarray]:
        height, width = pixels.shape[:2]
        patches = [
            longer * side / max(height, width) / backbone.patch_size for side in (width, height)
        ]
        sides = [max(1, round(count)) * backbone.patch_size for count in patches]
        seen = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC))
        image = torch.from_numpy(seen.copy()).to(place).float()
        return ((image - mean) / std).permute(2, 0, 1)[None], seen

    return FeatureSource(backbone, prepare)


def from_detector(config: Config, checkpoint: str, *, device: str | None = None) -> FeatureSource:
    """The backbone of a trained detector; images go through its test pipeline, padding too.

    Raises ValueError for a detector with another backbone, and as `Predictor`.
    """
    predictor = Predictor(config, checkpoint, device)
    backbone = predictor.model.backbone
    if not isinstance(backbone, RoPEViT):
        raise ValueError(f"the detector's backbone is a {type(backbone).__name__}, not a RoPEViT")
    preprocessor = predictor.model.data_preprocessor

    def prepare(pixels: np.ndarray) -> tuple[Tensor, np.ndarray]:
        image = preprocessor(predictor.packed([pixels]), False)["inputs"]
        return image, seen_pixels(image[0], preprocessor)

    return FeatureSource(backbone, prepare)


def seen_pixels(image: Tensor, preprocessor: torch.nn.Module) -> np.ndarray:
    """An image [3, H, W] that a data preprocessor normalised as RGB pixels [H, W, 3] again."""
    if preprocessor._enable_normalize:
        image = image * preprocessor.std + preprocessor.mean
    pixels = image.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
    # Images are loaded as BGR; the channel conversion is the preprocessor's, if there is one.
    return pixels if preprocessor._channel_conversion else pixels[:, :, ::-1].copy()
