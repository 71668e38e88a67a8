"""Mask annealing against the steps of the published configs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ropevit_mmdet.engine.hooks.mask_annealing_hook import MaskAnnealingHook, probabilities
from tests.test_models.test_dense_heads.test_eomt_head import build

STEPS = 12 * 7391
# https://github.com/tue-mps/eomt, configs/dinov2/coco/panoptic: base, large, giant at 640 pixels.
PUBLISHED = [
    ([14782, 36955, 59128], [29564, 51737, 73910]),
    ([14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),
    ([14782, 25869, 36955, 48042, 59128], [29564, 40651, 51737, 62824, 73910]),
]


@pytest.mark.parametrize(("begins", "ends"), PUBLISHED)
def test_probabilities_are_the_published_ones(begins, ends):
    for step in [*range(0, STEPS, 997), *begins, *ends, STEPS]:
        actual = probabilities(step / STEPS, len(begins))
        for prob, begin, end in zip(actual, begins, ends, strict=True):
            progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
            assert prob == pytest.approx((1 - progress) ** 0.9, abs=1e-3)
    assert probabilities(0.0, 1) == [1.0] and probabilities(0.5, 1) == [0.0]


def test_hook_sets_the_probabilities_of_the_iteration():
    model = build()
    head = model.panoptic_head
    assert head.attn_mask_probs.tolist() == [1, 1]
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    for outer, iteration in ((model, 25), (wrapped, 75)):
        runner = SimpleNamespace(model=outer, iter=iteration, max_iters=100)
        MaskAnnealingHook().before_train_iter(runner, 0)
        expected = torch.tensor(probabilities(iteration / 100, 2))
        assert torch.equal(head.attn_mask_probs, expected)
    assert "panoptic_head.attn_mask_probs" not in model.state_dict()
