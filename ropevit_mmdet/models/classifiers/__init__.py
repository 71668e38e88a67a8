"""Classifiers."""

from ropevit_mmdet.models.classifiers.rope_vit_classifier import RoPEViTClassifier, load_classifier

__all__ = ["RoPEViTClassifier", "load_classifier"]
