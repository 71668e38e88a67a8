"""The output of a data pipeline as images: boxes and masks after augmentation."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.runner import set_random_seed

from ropevit_mmdet.apis.features import denormalize
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.datasets import check_datasets, innermost_datasets
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization.overlays import draw_sample


class PipelineOutput:
    """The dataset of one split of a config, rendered after its pipeline.

    Args:
        config: the config.
        split: "train", "val" or "test".
        batch: collate images as the data loader does and run the data preprocessor with its
            padding and batch augmentations.

    Raises:
        UserError: a split that the config does not have, missing files, or wrong classes.
    """

    def __init__(self, config: Config, split: str = "train", *, batch: bool = False) -> None:
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            raise UserError(f"the config has no {split}_dataloader")
        check_datasets(config, (split,))
        dataset = copy.deepcopy(loader.dataset)
        if split != "train":
            _load_annotations_first(dataset)
        self.dataset = DATASETS.build(dataset)
        self.names = self.dataset.metainfo["classes"]
        self.training = split == "train"
        self.preprocessor = MODELS.build(config.model.data_preprocessor)
        self.batch_size = loader.get("batch_size", 1) if batch else None

    def __len__(self) -> int:
        return len(self.dataset)

    def render(self, indices: Sequence[int], *, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
        """Renders objects over the images of some indices, RGB [H, W, 3], uint8.

        Augmentation is sampled from the seed. Each has a name: its index, as a dataset wrapper may
        repeat a file, and that of its file, or of the first one of a mosaic.
        """
        set_random_seed(seed)
        step = self.batch_size or 1
        for start in range(0, len(indices), step):
            batch = indices[start : start + step]
            items = [self.dataset[index] for index in batch]
            for index, (pixels, sample) in zip(batch, self._pixels(items), strict=True):
                file = Path(sample.metainfo.get("img_path", ""))
                name = "_".join(filter(None, (f"{index:06d}", file.stem)))
                yield f"{name}.png", draw_sample(pixels, sample, self.names)

    def _pixels(self, items: list[dict[str, Any]]) -> Iterator[tuple[np.ndarray, DetDataSample]]:
        if self.batch_size is None:
            for item in items:
                image = item["inputs"].float().clamp(0, 255).round().byte()  # BGR [3, H, W]
                yield image.permute(1, 2, 0).flip(2).numpy(), item["data_samples"]
            return
        data = self.preprocessor(pseudo_collate(items), self.training)
        for image, sample in zip(data["inputs"], data["data_samples"], strict=True):
            yield denormalize(image, self.preprocessor), sample


def spread_indices(length: int, number: int | None) -> list[int]:
    """Returns at most `number` indices, evenly spread over a dataset; all for None."""
    number = length if number is None else min(number, length)
    return np.linspace(0, length - 1, number).round().astype(int).tolist()


def _load_annotations_first(dataset: ConfigDict) -> None:
    """Moves LoadAnnotations to the second place: test pipelines have it after Resize."""
    for inner in innermost_datasets(dataset):
        steps = inner.get("pipeline", [])
        names = "LoadAnnotations", "LoadPanopticAnnotations"
        steps[1:] = sorted(steps[1:], key=lambda step: not type_name(step).endswith(names))
