"""Datasets: COCO's format with checks, and a generator of synthetic images."""

from ropevit_mmdet.datasets.checked_coco_dataset import CheckedCocoDataset
from ropevit_mmdet.datasets.validation.config import (
    check_datasets,
    compare_classes,
    dataset_classes,
    innermost_datasets,
)

__all__ = [
    "CheckedCocoDataset",
    "check_datasets",
    "compare_classes",
    "dataset_classes",
    "innermost_datasets",
]
