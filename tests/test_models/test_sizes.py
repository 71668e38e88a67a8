"""Random sizes and settings of backbone and neck; more of them: SIZES=1000 pytest THIS_FILE."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from mmdet.models import DetDataPreprocessor

from ropevit_mmdet import RoPEViT, SimpleFeaturePyramid
from ropevit_mmdet.models.layers.windows import window_groups
from tests.oracle import fill

DIM = 16
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}
ROPES = [  # rope_style, rope_rot_type
    *(("default", "standard"), ("default", "interleaved")),
    *(("axial", "interleaved"), ("centered_separate", "standard")),
]
PYRAMIDS = [  # scale_factors, num_outs, add_extra_convs
    *(((4, 2, 1, 0.5), 5, False), ((2, 1, 0.5), 5, "on_output")),
    *(((1, 0.5, 0.25), 3, False), ((0.5, 0.125), 4, "on_output")),
]


@st.composite
def cases(draw):
    """Height and width in pixels, dtype, and settings; only windows for the largest images."""
    side = st.one_of(*(st.integers(*ends) for ends in ((1, 40), (41, 200), (201, 1500))))
    height, width = draw(side), draw(side)
    options = (None, 1, 2, 3, 7, 16, 200) if height * width <= 400 * 400 else (3, 7, 16)
    window = draw(st.sampled_from(options))
    blocks = [()] if height * width > 600 * 600 else [None, (), (0,), (0, 1)]
    rope, special = draw(st.sampled_from(ROPES)), draw(st.sampled_from([(4, True), (0, False)]))
    net = dict(
        arch=dict(rope_style=rope[0], rope_rot_type=rope[1], num_reg_tokens=special[0],
                  class_token=special[1]),
        patch_size=draw(st.sampled_from((14, 16))),
        window_size=window,
        global_attn_indices=None if window is None else draw(st.sampled_from(blocks)),
        rope_interpolation=draw(st.sampled_from(("pretrain", "none", 317.5))),
        pos_embed_mode=draw(st.sampled_from(("interpolate", "tile"))),
        final_norm=draw(st.booleans()),
    )  # fmt: skip
    dtype = draw(st.sampled_from(sorted(TOLERANCES, key=str)))
    return height, width, dtype, net, draw(st.sampled_from(PYRAMIDS))


@seed(0)
@settings(
    max_examples=int(os.environ.get("SIZES", "40")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_random_cases(case):
    check(*case)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(1, 1, 3), (1, 1500, 16), (1500, 1499, 16), (225, 1, None)]
)
def test_extreme_cases(height, width, window):
    arch = dict(rope_style="default", rope_rot_type="standard", num_reg_tokens=4, class_token=True)
    indices = () if window else None
    net = dict(arch=arch, patch_size=14, window_size=window, global_attn_indices=indices)
    check(height, width, torch.float32, net, PYRAMIDS[0])


def check(height, width, dtype, net, pyramid):
    """Shapes, finite values, order of the batch, padding, isolation of windows."""
    torch.manual_seed(height * width)
    patch, window = net["patch_size"], net["window_size"]
    arch = dict(patch_size=14, num_layers=2, num_heads=2, hidden_dim=DIM, mlp_dim=32)
    backbone = RoPEViT(**{**net, "arch": {**arch, **net["arch"], "drop_path_rate": 0.0}})
    scales, num_outs, extra = pyramid
    neck = SimpleFeaturePyramid(
        *(DIM, 8), in_stride=patch, scale_factors=scales, num_outs=num_outs, add_extra_convs=extra
    )
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for model in (backbone, neck):
        fill(model).eval().to(real)

    def run(model, inputs):  # bfloat16: autocast of a float32 model
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            return model(inputs)

    def close(actual, expected):
        limit = TOLERANCES[dtype] * (1 + expected.abs().max())
        assert actual.shape == expected.shape and (actual - expected).abs().max() <= limit

    small = max(1, 3 * height // 4), max(1, 3 * width // 4)
    raw = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((height, width), small)
    ]
    images = DetDataPreprocessor(mean=[127.5] * 3, std=[64.0] * 3)(
        dict(inputs=raw, data_samples=None)
    )["inputs"].to(real)
    (feature_map,) = run(backbone, images)
    rows, columns = grid = -(-height // patch), -(-width // patch)
    assert feature_map.shape == (2, DIM, *grid) and feature_map.isfinite().all()
    levels = run(neck, (feature_map,))
    sizes = [tuple(-int(-cells * scale // 1) for cells in grid) for scale in scales]
    while len(sizes) < num_outs:
        sizes.append(tuple(-(-cells // 2) for cells in sizes[-1]))
    assert [level.shape for level in levels] == [(2, 8, *size) for size in sizes]
    assert all(level.isfinite().all() and level.dtype == real for level in levels)

    padded = images.new_zeros(1, 3, rows * patch, columns * patch)
    padded[0, :, : small[0], : small[1]] = (raw[1] - 127.5) / 64
    close(run(backbone, padded)[0], feature_map[1:])
    close(run(backbone, images.flip(0))[0], feature_map.flip(0))
    close(run(neck, (feature_map[1:],))[0], levels[0][1:])
    if window is None or backbone.global_attn_indices != ():
        return
    corner = window_groups(grid, window)[-1]  # the ragged one, where there is one
    top = corner.top + (corner.rows - 1) * corner.height
    left = corner.left + (corner.columns - 1) * corner.width
    images[..., top * patch :, left * patch :] += 1
    changed = (run(backbone, images)[0] != feature_map).any(dim=(0, 1))
    assert changed[top:, left:].any()
    assert not changed[:top].any() and not changed[:, :left].any()
