"""SimpleFeaturePyramid: strides, sizes, alignment, and extra levels."""

import pytest
import torch
from mmdet.registry import MODELS

from ropevit_mmdet import LayerNorm2d, SimpleFeaturePyramid
from ropevit_mmdet.models.necks.simple_feature_pyramid import MapFusion, _resample

FUSE = ("concat", "sum")


def pyramid(**arguments) -> SimpleFeaturePyramid:
    return SimpleFeaturePyramid(**dict(in_channels=16, out_channels=8) | arguments)


def normed(x, layer):
    """Layer norm over channels, by plain functions."""
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    x = (x - mean) / (var + 1e-6).sqrt()
    return x * layer.weight[:, None, None] + layer.bias[:, None, None]


def test_registered_with_the_published_shape():
    neck = MODELS.build(dict(type="SimpleFeaturePyramid"))
    assert neck.strides == (3.5, 7, 14, 28, 56)
    assert MODELS.get("LayerNorm2d") is LayerNorm2d
    eps = {m.eps for m in neck.modules() if isinstance(m, LayerNorm2d)}
    assert eps == {1e-6}


def test_the_max_pooled_level_takes_every_second_cell():
    levels = pyramid()(torch.randn(1, 16, 16, 16))
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


def test_layers_are_those_of_the_simple_feature_pyramid():
    """Recomputed from the weights with plain functions, level by level."""
    neck = pyramid().double()
    for p in neck.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(1, 16, 6, 9, dtype=torch.float64)
    f = torch.nn.functional

    def deconv(y, layer):
        return f.conv_transpose2d(y, layer.weight, layer.bias, stride=2)

    up4, up2 = neck.scales[0], neck.scales[1]
    scaled = [
        deconv(f.gelu(normed(deconv(x, up4[0]), up4[1])), up4[3]),
        deconv(x, up2),
        x,
        f.max_pool2d(x, 2, ceil_mode=True),
    ]
    for level, y, convs in zip(neck(x), scaled, neck.convs):
        for conv, padding in zip(convs, (0, 1)):
            assert conv.conv.bias is None
            y = normed(f.conv2d(y, conv.conv.weight, padding=padding), conv.norm)
        torch.testing.assert_close(level, y)


@pytest.mark.parametrize("fuse", FUSE)
def test_several_maps_are_fused_before_the_pyramid(fuse):
    """The same weights as without fusion, from the same seed, and the same pyramid of their map."""
    torch.manual_seed(0)
    several = pyramid(in_channels=[16] * 3, fuse=fuse, out_strides=(4, 8, 16, 32, 64))
    torch.manual_seed(0)
    one = pyramid(in_channels=[16], fuse=fuse, out_strides=(4, 8, 16, 32, 64))
    state = several.state_dict()
    assert {name.split(".")[0] for name in state} == {"scales", "convs", "fusion"}
    for name, weight in one.state_dict().items():
        assert torch.equal(state.pop(name), weight)
    assert all(name.startswith("fusion.") for name in state)
    maps = [torch.randn(2, 16, 6, 9) for _ in range(3)]
    for actual, expected in zip(several(maps), one(several.fusion(maps)), strict=True):
        assert torch.equal(actual, expected)
    for wrong in (maps[:2], maps[0]):
        with pytest.raises(ValueError, match=r"\(out_indices\) must be 3, got [12]"):
            several(wrong)


def test_resampling_keeps_positions():
    """A ramp over the image stays the same ramp, sampled at the new cells' centres."""
    neck = pyramid(out_strides=(4, 8, 16, 32, 64))
    assert neck.strides == (4, 8, 16, 32, 64)
    columns = (torch.arange(65, dtype=torch.float64) + 0.5) * 3.5  # pixels
    level = columns.expand(1, 1, 33, 65)
    resampled = _resample(level, 3.5, 4)
    assert resampled.shape[-2:] == (29, 57)
    centres = (torch.arange(57, dtype=torch.float64) + 0.5) * 4
    inner = slice(1, -1)  # at the border bilinear resampling repeats the last cell
    torch.testing.assert_close(resampled[0, 0, 0, inner], centres[inner], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        sizes = [level.shape[-1] for level in neck(torch.randn(1, 16, 64, 64))]
    assert sizes == [224, 112, 56, 28, 14]  # 896 pixels over 4 ... 64


def test_resampling_keeps_positions_where_rounding_keeps_the_size():
    """7 cells at stride 56 are 7 at 64, elsewhere: PyTorch's operator would copy them."""
    for old, new in ((7, 7), (9, 8)):
        columns = (torch.arange(old, dtype=torch.float64) + 0.5) * 56  # pixels
        resampled = _resample(columns.expand(1, 1, 5, old), 56, 64)
        centres = ((torch.arange(new, dtype=torch.float64) + 0.5) * 64).clamp(max=columns[-1])
        torch.testing.assert_close(resampled, centres.expand(1, 1, 5, new))


@pytest.mark.parametrize(("own", "out", "cells"), [(14, 12, 63), (3.5, 3, 63), (8, 7, 62)])
def test_sizes_of_resampled_levels_are_exact(own, out, cells):
    """54 x 14 pixels are 63 x 12; 54 * (14 / 12) is above 63 and would be rounded up to 64."""
    assert _resample(torch.zeros(1, 1, 54, 1), own, out).shape[2] == cells


@pytest.mark.parametrize("grid", [(5, 9), (1, 3)])
@pytest.mark.parametrize(("channels", "mode"), [((8, 4, 6), "concat"), ((6, 6, 6), "sum")])
def test_fusion_equals_a_plain_computation(channels, mode, grid):
    fusion = MapFusion(channels, mode).double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    maps = [100**i * torch.randn(2, c, *grid).double() + i for i, c in enumerate(channels)]
    parts = [normed(one, norm) for one, norm in zip(maps, fusion.norms)]
    joined = torch.cat(parts, 1) if mode == "concat" else parts[0] + parts[1] + parts[2]
    projection = fusion.projection
    expected = torch.einsum("oc,bchw->bohw", projection.weight[:, :, 0, 0], joined)
    expected += projection.bias[:, None, None]
    torch.testing.assert_close(fusion(maps), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fuse", FUSE)
def test_fusion_and_pyramid_compile_as_one_graph(fuse):
    neck = pyramid(in_channels=[16] * 4, fuse=fuse)
    maps = [torch.randn(1, 16, 5, 7) for _ in range(4)]
    compiled = torch.compile(neck, backend="eager", fullgraph=True)
    for actual, expected in zip(compiled(maps), neck(maps), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_outs=3), "num_outs must be 4 or more.*got 3"),
        (dict(add_extra_convs="on_input"), "on_input"),
        (dict(out_strides=(4, 8)), r"\(4, 8\)"),
        (dict(in_channels=[]), r"in_channels.*got \[\]"),
        (dict(in_channels=[16, 16]), "fuse of several maps must be 'concat' or 'sum', got None"),
        (dict(fuse="mean"), "^fuse must be None, 'concat' or 'sum', got 'mean'$"),
        (dict(in_channels=[16, 8], fuse="sum"), r"fuse='sum' must be equal, got \[16, 8\]"),
        (dict(scale_factors=(3, 1)), r"scale_factors.*got \(3, 1\)"),
        (dict(scale_factors=(1, 0.3)), r"got \(1, 0.3\)"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pyramid(**arguments)


@pytest.mark.parametrize(
    "several",
    [dict(in_channels=[16]), *(dict(in_channels=[16] * 3, fuse=f) for f in FUSE)],
    ids=str,
)
def test_every_parameter_gets_a_gradient(several):
    neck = pyramid(add_extra_convs="on_output", **several)
    maps = [torch.randn(1, 16, 8, 8) for _ in several["in_channels"]]
    sum(level.square().mean() for level in neck(maps)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


@pytest.mark.parametrize("grid", [(9, 1), (9, 2), (20, 3), (1, 1)])
def test_extra_levels_of_narrow_maps_in_bfloat16(grid):
    """oneDNN with AMX returns uninitialized memory for one or two columns."""
    torch.manual_seed(0)
    neck = pyramid(scale_factors=(1,), num_outs=3, add_extra_convs="on_output").eval()
    images = torch.randn(1, 16, *grid)
    with torch.no_grad():
        expected = neck(images)
        for _ in range(5):
            freed = [torch.full((size,), 1e30) for size in (10, 100, 500, 1000, 5000, 20000)]
            del freed  # for reads of uninitialized memory
            with torch.autocast("cpu", torch.bfloat16):
                actual = neck(images)
            for level, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(level, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("grid", [(9, 7), (5, 2), (1, 1)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(norm_cfg=None),
        dict(out_strides=(4, 8, 16, 32, 64)),
        dict(out_strides=(4, 8, 16, 32, 64), norm_cfg=None, add_extra_convs="on_output"),
        dict(scale_factors=(1,), num_outs=3, add_extra_convs="on_output"),
    ],
    ids=str,
)
def test_levels_can_be_viewed(arguments, grid, kind):
    """As `view`, which copies nothing, DINO takes the cells of a level in a row."""
    neck = pyramid(**arguments).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    dtype = next(neck.parameters()).dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, kind == "autocast"):
        for level in neck(torch.randn(2, 16, *grid, dtype=dtype)):
            assert torch.equal(level.view(2, 8, -1), level.flatten(2))


def test_a_single_level_can_be_viewed_as_a_row():
    """CenterNet does so with the output of its convolutions, which keeps the order in memory."""
    (level,) = pyramid(scale_factors=(2,), num_outs=1)(torch.randn(2, 16, 5, 7))
    output = torch.nn.Conv2d(8, 3, 3)(level)
    assert torch.equal(output.view(2, -1), output.flatten(1))
