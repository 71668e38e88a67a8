"""What a pipeline feeds a detector, as images: boxes and masks drawn after augmentation."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.utils import mask2ndarray
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData

from ropevit_mmdet.apis.feature_source import seen_pixels
from ropevit_mmdet.datasets.checked_coco import SPLITS, check_datasets
from ropevit_mmdet.visualization.overlays import Detection, draw_detections

IGNORED = "ignored"  # what is shown of regions that count neither way


class FedImage(NamedTuple):
    """An image that the model gets, with its objects drawn over it, RGB [H, W, 3], uint8."""

    index: int  # in the dataset
    path: str  # of its file, the first one of a mosaic; "" if the pipeline does not say
    overlay: np.ndarray


class FedDataset:
    """The dataset of one split of a config, looked at behind its pipeline; wrappers included.

    With `batch`, images are put together as the data loader does, and seen behind the data
    preprocessor with its padding and batch augmentations. Raises ValueError for a split that the
    config does not have, files that are not there and classes that do not fit them.
    """

    def __init__(self, config: Config, split: str = "train", *, batch: bool = False) -> None:
        if split not in SPLITS or config.get(f"{split}_dataloader") is None:
            raise ValueError(f"the config has no {split}_dataloader")
        if config.model.get("data_preprocessor") is None:
            raise ValueError("the config's model has no data_preprocessor: colors are not known")
        check_datasets(config, (split,))
        loader = config[f"{split}_dataloader"]
        described = loader.dataset if split == "train" else _annotated_early(loader.dataset)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            self.dataset = DATASETS.build(described)
        self.names = (*self.dataset.metainfo["classes"], IGNORED)
        self.training = split == "train"
        self.preprocessor = MODELS.build(config.model.data_preprocessor)
        self.batch_size = loader.get("batch_size", 1) if batch else None

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, indices: Sequence[int], *, seed: int = 0) -> Iterator[FedImage]:
        """The images of some indices in turn; augmentation is drawn from the seed."""
        set_random_seed(seed)
        step = self.batch_size or 1
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            items = [self.dataset[index] for index in chosen]
            for index, (image, sample) in zip(chosen, self._fed(items), strict=True):
                overlay = draw_detections(image, _objects(sample, len(self.names) - 1), self.names)
                yield FedImage(index, sample.metainfo.get("img_path", ""), overlay)

    def _fed(self, items: list[dict[str, Any]]) -> Iterator[tuple[np.ndarray, DetDataSample]]:
        if not all(isinstance(item["inputs"], torch.Tensor) for item in items):
            raise ValueError("the pipeline gives several views of an image: not one to draw")
        if self.batch_size is None:
            for item in items:
                yield _unprocessed(item["inputs"]), item["data_samples"]
            return
        data = self.preprocessor(pseudo_collate(items), self.training)
        for image, sample in zip(data["inputs"], data["data_samples"], strict=True):
            yield seen_pixels(image, self.preprocessor), sample


def _annotated_early(settings: Any) -> Any:
    """A dataset whose pipelines load annotations right behind the image.

    To be evaluated they are loaded behind Resize, in pixels of the file: not to be drawn over what
    the model gets.
    """
    if isinstance(settings, list):
        return [_annotated_early(value) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    found = {key: _annotated_early(value) for key, value in settings.items()}
    steps = found.get("pipeline")
    if isinstance(steps, list):
        late = [step for step in steps if step["type"].endswith("LoadAnnotations")]
        first, *others = [step for step in steps if step not in late]
        found["pipeline"] = [first, *late, *others]
    return found


def spread_indices(length: int, number: int | None) -> list[int]:
    """At most `number` indices, evenly over a dataset; None for all of them."""
    if number is None or number >= length:
        return list(range(length))
    return np.linspace(0, length - 1, number).round().astype(int).tolist()


def file_name(image: FedImage) -> str:
    """The name of an overlay's file: index first, as a wrapper may give one file several times."""
    return f"{image.index:06d}_{Path(image.path).stem}.png".replace("_.png", ".png")


def _unprocessed(image: torch.Tensor) -> np.ndarray:
    """A packed input [3, H, W] of 0..255, BGR as mmdet's pipelines load it, as RGB pixels."""
    pixels = image.float().clamp(0, 255).round().byte().permute(1, 2, 0)  # [H, W, 3]
    return pixels.flip(2).numpy()


def _objects(sample: DetDataSample, ignored_label: int) -> list[Detection]:
    found = _instances(sample.get("gt_instances"))
    ignored = _instances(sample.get("ignored_instances"))
    return found + [Detection(one.box, ignored_label, None, one.mask) for one in ignored]


def _instances(instances: InstanceData | None) -> list[Detection]:
    if instances is None or "bboxes" not in instances:
        return []
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    masks: Any = [None] * len(boxes)
    if "masks" in instances:
        masks = mask2ndarray(instances.masks).astype(bool)
    rows = zip(boxes.tolist(), instances.labels.tolist(), masks, strict=True)
    return [Detection(tuple(box), label, None, mask) for box, label, mask in rows]
