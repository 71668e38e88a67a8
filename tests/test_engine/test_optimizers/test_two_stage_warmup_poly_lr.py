"""TwoStageWarmupPolyLR against the published formula."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from ropevit_mmdet import TwoStageWarmupPolyLR


def published(step, warmup, *, is_backbone, end=100, power=0.9):
    """https://github.com/tue-mps/eomt, `training/two_stage_warmup_poly_schedule.py`."""
    if is_backbone:
        if step < warmup[0]:
            return 0.0
        if step < sum(warmup):
            return (step - warmup[0]) / warmup[1]
        return (1 - (step - sum(warmup)) / (end - sum(warmup))) ** power
    if step < warmup[0]:
        return step / warmup[0]
    return (1 - (step - warmup[0]) / (end - warmup[0])) ** power


@pytest.mark.parametrize("warmup", [(10, 20), (0, 20), (10, 0)])
def test_head_warms_up_before_the_backbone(warmup):
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    rates = (0.2, 0.5, 1.0)
    groups = [
        dict(params=[p], lr=lr, initial_lr=lr, layer=layer)
        for layer, (p, lr) in enumerate(zip(params, rates))
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = TwoStageWarmupPolyLR(OptimWrapper(optimizer), *warmup, by_epoch=False, end=100)
    for step in range(100):
        for group, base in zip(optimizer.param_groups, (0.2, 0.5, 1.0)):
            expected = base * published(step, warmup, is_backbone=group["layer"] < 2)
            assert group["lr"] == pytest.approx(expected, abs=1e-12), step
        optimizer.step()
        scheduler.step()
