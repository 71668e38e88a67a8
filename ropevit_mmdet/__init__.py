"""ropevit_mmdet: MMDetection detectors on birder's RoPE Vision Transformers.

Importing the package registers its classes and makes the installed MMDetection work on a current
PyTorch (`compat.prepare`).
"""

from ropevit_mmdet import compat

compat.prepare()  # before everything that imports mmcv.ops

from ropevit_mmdet.datasets import CheckedCocoDataset
from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteGuard
from ropevit_mmdet.engine.hooks.preemption_hook import PreemptionHook
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook
from ropevit_mmdet.engine.hooks.rope_vit_checks import RoPEViTChecks
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import (
    BlockFSDPStrategy,
    wrap_blocks,
)
from ropevit_mmdet.evaluation.fast_coco_metric import FastCocoMetric
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from ropevit_mmdet.models.necks.simple_feature_pyramid import LayerNorm2d, SimpleFeaturePyramid
from ropevit_mmdet.weights.detector_checkpoint import register_schemes

register_schemes()

__version__ = "0.2.0"
__all__ = [
    "BlockFSDPStrategy",
    "CheckedCocoDataset",
    "FastCocoMetric",
    "FrozenBackbone",
    "LayerNorm2d",
    "NonFiniteGuard",
    "PreemptionHook",
    "ResumableCheckpointHook",
    "RoPEViT",
    "RoPEViTChecks",
    "RoPEViTLayerDecay",
    "SimpleFeaturePyramid",
    "__version__",
    "load_classifier",
    "wrap_blocks",
]
