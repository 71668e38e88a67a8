"""TwoStageWarmupPolyLR: the learning rates of EoMT, the head's before the backbone's.

Paper: arXiv 2503.19108. Reference implementation: https://github.com/tue-mps/eomt,
`training/two_stage_warmup_poly_schedule.py`.
"""

from typing import Any

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler


@PARAM_SCHEDULERS.register_module()
class TwoStageWarmupPolyLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up, then polynomial decay to 0 at `end`; the backbone waits for the head.

    It needs `RoPEViTLayerDecay`, which gives every parameter group its layer, and is the only
    scheduler of a run.

    Args:
        optimizer: optimizer or its wrapper.
        head_warmup: iterations in which the learning rate of the last layer (heads and final norm)
            rises from 0, and all others are 0.
        backbone_warmup: iterations after them in which the others rise from 0.
        power: exponent of the decay.
        kwargs: as for mmengine's schedulers; `end` is the number of iterations of the run.
    """

    def __init__(
        self,
        optimizer: Any,
        head_warmup: int = 500,
        backbone_warmup: int = 1000,
        power: float = 0.9,
        **kwargs: Any,
    ) -> None:
        self.head_warmup, self.backbone_warmup, self.power = head_warmup, backbone_warmup, power
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        # mmengine's wrapper adds a group without layer, for the base rate of the log.
        layers = [group.get("layer") for group in self.optimizer.param_groups]
        last = max(layer for layer in layers if layer is not None)
        return [
            base * self._factor(layer in (last, None))
            for base, layer in zip(self.base_values, layers, strict=True)
        ]

    def _factor(self, is_head: bool) -> float:
        wait, warmup = (
            (0, self.head_warmup) if is_head else (self.head_warmup, self.backbone_warmup)
        )
        step = self.last_step - wait
        if step < warmup:
            return max(0, step) / max(1, warmup)
        return (1 - (step - warmup) / (self.end - self.begin - wait - warmup)) ** self.power
