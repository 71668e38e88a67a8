"""Converts the labels of other formats to COCO's."""

from ropevit_mmdet.datasets.conversion.convert import Conversion, convert
from ropevit_mmdet.datasets.conversion.readers import READERS

__all__ = ["READERS", "Conversion", "convert"]
