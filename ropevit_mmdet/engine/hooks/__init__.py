"""Training hooks registered with mmdet."""

from ropevit_mmdet.engine.hooks._checkpoint_files import latest_checkpoint
from ropevit_mmdet.engine.hooks.mask_annealing_hook import MaskAnnealingHook
from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteGuard
from ropevit_mmdet.engine.hooks.preemption_hook import PreemptionHook
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook
from ropevit_mmdet.engine.hooks.rope_vit_checks import RoPEViTChecks

__all__ = [
    "MaskAnnealingHook",
    "NonFiniteGuard",
    "PreemptionHook",
    "ResumableCheckpointHook",
    "RoPEViTChecks",
    "latest_checkpoint",
]
