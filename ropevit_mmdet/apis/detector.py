"""A checkpoint as a detector: images in, mmdet's data samples out."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.structures import InstanceData
from PIL import Image

from ropevit_mmdet._images import check_aspect, read_image
from ropevit_mmdet.compat.checkpoint import embedded_config
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.datasets import dataset_classes, innermost_datasets
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.weights.detector_checkpoint import (
    check_classes,
    fitted,
    read_detector_checkpoint,
    saved_classes,
)

ImageLike = str | os.PathLike | np.ndarray | Image.Image


class Detector:
    """A detector with its weights, class names and test pipeline.

    Example:
        >>> detector = Detector("work_dirs/shapes_maskrcnn/iter_2250.pth")
        >>> sample = detector("image.jpg", score_thr=0.5)
        >>> sample.pred_instances.bboxes  # [N, 4], pixels of the image

    Args:
        checkpoint: a detector's checkpoint: path, URL or `hf://OWNER/REPO[@REVISION]/FILE`.
        config: a config, its file or its packaged name; by default the config in the checkpoint,
            which is read as literals: nothing in it is run.
        cfg_options: changes of the config, as for `load_config`.
        device: as PyTorch names it; by default the first GPU, else the CPU.

    Attributes:
        model: the model in eval mode, without the wrapper of a frozen backbone.
        config: the config.
        classes: the class name of each label.
        min_score: the score below which the model itself drops detections.

    Raises:
        UserError: a checkpoint, config or device that cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        config: Config | str | os.PathLike[str] | None = None,
        cfg_options: dict[str, Any] | Sequence[str] | None = None,
        device: str | None = None,
    ) -> None:
        self.device = choose_device(device)
        loaded = read_detector_checkpoint(os.fspath(checkpoint))
        given: Any = embedded_config(loaded, checkpoint) if config is None else config
        if cfg_options or not isinstance(given, Config):
            given = load_config(given, cfg_options)
        self.config = given
        model: Any = build_detector(self.config, random=False)
        model.load_state_dict(fitted(model, loaded["state_dict"], str(checkpoint)))
        if isinstance(getattr(model, "backbone", None), FrozenBackbone):
            model.backbone = model.backbone.backbone
        self.model: Any = revert_sync_batchnorm(model).to(self.device).eval()
        float32_decoding(self.model)
        saved, configured = saved_classes(loaded), config_classes(self.config)
        if warning := check_classes(saved, configured, str(checkpoint)):
            print_log(warning, "current", logging.WARNING)
        self.classes = saved or configured
        settings = self.config.model.get("test_cfg") or {}
        self.min_score: float = settings.get("rcnn", settings).get("score_thr", 0.0)
        self._pipeline = _test_pipeline(self.config)

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 1,
        score_thr: float = 0.0,
    ) -> Any:
        """Detects objects.

        Args:
            images: an image, a list of them, or any other iterable, such as a generator. An image
                is a path, an array as mmdet and OpenCV have it (BGR [H, W, 3], uint8), or a PIL
                image.
            batch_size: images per forward pass.
            score_thr: drop lower scores; by default those that the config's `test_cfg` drops.

        Returns:
            mmdet's `DetDataSample` of an image, a list of them for a list, and an iterator for any
            other iterable. Its `pred_instances` are on the CPU, best first: `bboxes` [N, 4]
            (x1, y1, x2, y2) in pixels of the image, `labels`, `scores` and, of a detector with
            masks, `masks` [N, H, W].

        Raises:
            UserError: an image that cannot be used, by its name or index.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, must be 1 or more")
        if isinstance(images, ImageLike):
            return next(self._batches([images], 1, score_thr))
        samples = self._batches(images, batch_size, score_thr)
        return list(samples) if isinstance(images, Sequence) else samples

    def prepare(self, image: ImageLike, name: object = None) -> dict[str, Any]:
        """Runs the test pipeline on an image, which errors call by its path or `name`."""
        path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        name = path or name
        pixels = _bgr(image, name)
        check_aspect(pixels.shape, name)
        try:
            packed = self._pipeline({"img": np.ascontiguousarray(pixels), "img_id": 0})
        except Exception as error:  # a pipeline may raise anything
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"image {name}: the test pipeline fails: {cause}") from error
        packed["data_samples"].set_metainfo({"img_path": path})
        return packed

    @torch.no_grad()
    def detect(
        self, prepared: Sequence[Mapping[str, Any]], *, score_thr: float = 0.0
    ) -> list[DetDataSample]:
        """Detects objects in a batch of prepared images."""
        samples = self.model.test_step(collate(prepared))
        return [_best_first(sample.cpu(), score_thr) for sample in samples]

    def _batches(
        self, images: Iterable[ImageLike], batch_size: int, score_thr: float
    ) -> Iterator[DetDataSample]:
        prepared = (self.prepare(image, index) for index, image in enumerate(images))
        while batch := list(islice(prepared, batch_size)):
            yield from self.detect(batch, score_thr=score_thr)


def collate(prepared: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Joins prepared images to the input of the model's data preprocessor."""
    return {key: [one[key] for one in prepared] for key in ("inputs", "data_samples")}


def choose_device(name: str | None) -> torch.device:
    """Returns a device by name, by default the first GPU, else the CPU.

    Raises:
        UserError: PyTorch does not know the device or cannot use it here.
    """
    name = name or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every backend has its own error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return torch.device(name)


def config_classes(config: Config) -> tuple[str, ...]:
    """The class names of a config's test data."""
    return dataset_classes(_test_dataset(config))


def _test_dataset(config: Config) -> Any:
    loader = config.get("test_dataloader")
    if not loader:
        raise UserError("the config has no test_dataloader, whose pipeline prepares images")
    return next(innermost_datasets(loader["dataset"]))


def _test_pipeline(config: Config) -> Compose:
    """The pipeline of the test data for images in memory."""
    steps = _test_dataset(config)["pipeline"]
    first = {"to_float32": steps[0].get("to_float32", False)}
    others = [step for step in steps[1:] if "Annotations" not in type_name(step)]
    return Compose([{"type": "mmdet.LoadImageFromNDArray", **first}, *others])


def _bgr(image: ImageLike, name: object) -> np.ndarray:
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return read_image(image, name)[:, :, ::-1]
    shape: Any = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", "")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        given = f"{type(image).__name__} {[*shape]} {dtype}".replace(" []", "").strip()
        raise UserError(
            f"image {name} is {given}: expected a path, a PIL image or an array, BGR [H, W, 3], "
            "uint8"
        )
    return image


def _best_first(sample: DetDataSample, score_thr: float) -> DetDataSample:
    """Sorts and cuts detections; those that are sorted without a copy of their masks."""
    if "pred_instances" not in sample:  # panoptic
        return sample
    found: InstanceData = sample.pred_instances
    order = found.scores.argsort(descending=True, stable=True)
    if not torch.equal(order, torch.arange(len(order))):
        found = found[order]
    sample.pred_instances = found[: int((found.scores >= score_thr).sum())]
    return sample
