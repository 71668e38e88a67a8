"""The light config's share of operations."""

import pytest

from benchmarks import light
from ropevit_mmdet.engine.config import load_config

HALF = {"model.backbone.global_attn_indices": (5, 11)}


@pytest.fixture(scope="module")
def published():
    return light.gflop(load_config("ropevit_maskrcnn"), (896, 896), 100)


@pytest.mark.parametrize(("options", "bar"), [({}, 0.70), (HALF, 0.65)])
def test_light_config_has_seven_tenths_of_the_operations(options, bar, published):
    counts = light.gflop(load_config("ropevit_maskrcnn_light", options), (896, 896), 100)
    assert sum(published.values()) == pytest.approx(1655.9, abs=1)  # as `ropevit benchmark`
    assert bar - 0.02 < sum(counts.values()) / sum(published.values()) <= bar
