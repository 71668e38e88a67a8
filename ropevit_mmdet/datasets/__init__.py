"""Datasets: COCO's format with checks, and a generator of synthetic images."""

from ropevit_mmdet.compat.config import innermost_datasets
from ropevit_mmdet.datasets.aspect_batch_sampler import AspectBatchSampler
from ropevit_mmdet.datasets.checked_coco_dataset import CheckedCocoDataset
from ropevit_mmdet.datasets.validation.config import (
    check_datasets,
    compare_classes,
    dataset_classes,
    dataset_metainfo,
)

__all__ = [
    "AspectBatchSampler",
    "CheckedCocoDataset",
    "check_datasets",
    "compare_classes",
    "dataset_classes",
    "dataset_metainfo",
    "innermost_datasets",
]
