"""Detectors, heads, backbones, necks, their layers, and birder's classifiers."""

from ropevit_mmdet.models.backbones import FrozenBackbone, RoPEViT
from ropevit_mmdet.models.classifiers import load_classifier
from ropevit_mmdet.models.dense_heads import EoMTHead
from ropevit_mmdet.models.detectors import EoMT
from ropevit_mmdet.models.layers import LayerNorm2d
from ropevit_mmdet.models.necks import SimpleFeaturePyramid

__all__ = [
    "EoMT",
    "EoMTHead",
    "FrozenBackbone",
    "LayerNorm2d",
    "RoPEViT",
    "SimpleFeaturePyramid",
    "load_classifier",
]
