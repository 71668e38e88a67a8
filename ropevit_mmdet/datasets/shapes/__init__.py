"""The shapes dataset: synthetic images with instance masks, for demos and tests."""

from ropevit_mmdet.datasets.shapes.dataset import generate
from ropevit_mmdet.datasets.shapes.scene import CLASSES

__all__ = ["CLASSES", "generate"]
