"""ropevit_mmdet: MMDetection detectors on birder's RoPE Vision Transformers.

Importing the package registers its classes and makes the installed MMDetection work on a current
PyTorch (`compat.prepare`).
"""

from ropevit_mmdet import compat

compat.prepare()  # before everything that imports mmcv.ops

from ropevit_mmdet.datasets import AspectBatchSampler, CheckedCocoDataset
from ropevit_mmdet.engine.hooks.mask_annealing_hook import MaskAnnealingHook
from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteGuard
from ropevit_mmdet.engine.hooks.preemption_hook import PreemptionHook
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook
from ropevit_mmdet.engine.hooks.rope_vit_checks import RoPEViTChecks
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay
from ropevit_mmdet.engine.optimizers.two_stage_warmup_poly_lr import TwoStageWarmupPolyLR
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import (
    BlockFSDPStrategy,
    wrap_blocks,
)
from ropevit_mmdet.evaluation.fast_coco_metric import FastCocoMetric
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from ropevit_mmdet.models.dense_heads.eomt_head import EoMTHead
from ropevit_mmdet.models.detectors.eomt import EoMT
from ropevit_mmdet.models.necks.simple_feature_pyramid import LayerNorm2d, SimpleFeaturePyramid
from ropevit_mmdet.weights import detector_checkpoint

detector_checkpoint.install()

__version__ = "0.2.0"
__all__ = [
    "AspectBatchSampler",
    "BlockFSDPStrategy",
    "CheckedCocoDataset",
    "EoMT",
    "EoMTHead",
    "FastCocoMetric",
    "FrozenBackbone",
    "LayerNorm2d",
    "MaskAnnealingHook",
    "NonFiniteGuard",
    "PreemptionHook",
    "ResumableCheckpointHook",
    "RoPEViT",
    "RoPEViTChecks",
    "RoPEViTLayerDecay",
    "SimpleFeaturePyramid",
    "TwoStageWarmupPolyLR",
    "__version__",
    "load_classifier",
    "wrap_blocks",
]
