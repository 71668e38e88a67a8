"""Detectors."""

from ropevit_mmdet.models.detectors.eomt import EoMT

__all__ = ["EoMT"]
