"""Data sets that come with the package: made on the spot, nothing to download."""

from ropevit_mmdet.datasets.shapes import CLASSES, generate

__all__ = ["CLASSES", "generate"]
