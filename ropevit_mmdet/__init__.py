"""ropevit_mmdet: train MMDetection detectors on birder's RoPE Vision Transformers.

Importing the package makes the installed mm stack usable and registers the parts.
"""

from ropevit_mmdet import compat

compat.prepare()  # before everything that imports mmcv.ops

from ropevit_mmdet.datasets.checked_coco import CheckedCocoDataset  # noqa: E402
from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteGuard  # noqa: E402
from ropevit_mmdet.engine.hooks.preemption_hook import PreemptionHook  # noqa: E402
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook  # noqa: E402
from ropevit_mmdet.engine.hooks.rope_vit_checks import RoPEViTChecks  # noqa: E402
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay  # noqa: E402
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import BlockFSDPStrategy  # noqa: E402
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone  # noqa: E402
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT  # noqa: E402
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier  # noqa: E402
from ropevit_mmdet.models.necks.simple_feature_pyramid import LayerNorm2d, SimpleFeaturePyramid  # noqa: E402
from ropevit_mmdet.weights.detector_checkpoint import take_over_urls  # noqa: E402

take_over_urls()

__version__ = "0.1.0"
__all__ = [
    "BlockFSDPStrategy",
    "CheckedCocoDataset",
    "FrozenBackbone",
    "LayerNorm2d",
    "NonFiniteGuard",
    "PreemptionHook",
    "RoPEViT",
    "RoPEViTChecks",
    "RoPEViTLayerDecay",
    "ResumableCheckpointHook",
    "SimpleFeaturePyramid",
    "load_classifier",
]
