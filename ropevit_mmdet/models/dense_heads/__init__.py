"""Heads without regions of interest."""

from ropevit_mmdet.models.dense_heads.eomt_head import EoMTHead

__all__ = ["EoMTHead"]
