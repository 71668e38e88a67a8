"""The light config's share of operations, and the variants that are measured on the shapes."""

import pytest

from benchmarks import light
from benchmarks.recipes import SMALL
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


def test_variants_change_what_they_name():
    base = load_config(SMALL)
    parts = {
        "30 proposals": {"box head"},
        "one RPN convolution": {"RPN"},
        "half the box head's convolutions": {"box head"},
        "half the global blocks": {"backbone"},
        "light": {"neck", "RPN", "box head"},
    }
    first = light.gflop(load_config(base, light.PUBLISHED))
    for name, changed in parts.items():
        counts = light.gflop(load_config(base, light.PUBLISHED | light.VARIANTS[name][0]))
        assert {key for key in first if counts[key] < first[key]} == changed
        assert {key for key in first if counts[key] == first[key]} == first.keys() - changed
