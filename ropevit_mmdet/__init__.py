"""ropevit_mmdet: train MMDetection detectors on birder's RoPE Vision Transformers.

Importing the package makes the installed mm stack usable and registers the parts.
"""

from ropevit_mmdet import stack

stack.prepare()  # ahead of everything that imports mmcv.ops

from ropevit_mmdet.backbone import RoPEViT  # noqa: E402
from ropevit_mmdet.classifier import load_classifier  # noqa: E402
from ropevit_mmdet.data_checks.datasets import CheckedCocoDataset  # noqa: E402
from ropevit_mmdet.frozen import FrozenBackbone  # noqa: E402
from ropevit_mmdet.hooks import RoPEViTChecks  # noqa: E402
from ropevit_mmdet.layer_decay import RoPEViTLayerDecay  # noqa: E402
from ropevit_mmdet.neck import LayerNorm2d, SimpleFeaturePyramid  # noqa: E402
from ropevit_mmdet.run.distributed import BlockFSDPStrategy  # noqa: E402
from ropevit_mmdet.run.non_finite import NonFiniteGuard  # noqa: E402
from ropevit_mmdet.run.preemption import PreemptionHook  # noqa: E402
from ropevit_mmdet.run.resume import ResumableCheckpointHook  # noqa: E402
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
