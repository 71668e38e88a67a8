"""Necks."""

from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["SimpleFeaturePyramid"]
