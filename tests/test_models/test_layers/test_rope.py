"""The rope tables and their oddities."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ropevit_mmdet.models.layers.rope import Rope, RopeTables, apply_rope
from ropevit_mmdet.models.layers.windows import window_groups

STYLES = {
    "default": dict(),
    "interleaved": dict(rotation="interleaved"),
    "axial": dict(style="axial", rotation="interleaved"),
    "centered_separate": dict(style="centered_separate"),
    "centered_periods": dict(style="centered_periods"),
}


def rotated(rope: Rope, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    cos, sin = rope.table(grid)
    return apply_rope(x, cos[:, None], sin[:, None], rope.rotation)


@pytest.mark.parametrize("style", STYLES)
def test_norms_stay_if_it_is_a_rotation(style):
    """The default style is none: equal angles are adjacent, paired channels are D/2 apart."""
    x = torch.randn(20, 1, 16, dtype=torch.float64)
    norms = rotated(Rope(16, **STYLES[style]), x, (4, 5)).norm(dim=-1)
    if style == "default":
        assert (norms - x.norm(dim=-1)).abs().max() > 0.1
    else:
        torch.testing.assert_close(norms, x.norm(dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("style", STYLES)
def test_logits_depend_only_on_distance_if_it_is_a_rotation(style):
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    rope = Rope(16, **STYLES[style])
    a, b = (rotated(rope, t.expand(30, 1, 16), (5, 6)).squeeze(1) for t in (q, k))
    logits = (a @ b.T).view(5, 6, 5, 6)
    here, there = logits[0, 0, 2, 1], logits[2, 3, 4, 4]  # both 2 rows and 1 column apart
    if style == "default":
        assert (here - there).abs() > 1e-3
    else:
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


def test_default_table_by_hand():
    """Angle of row r and column c, band k: (r or c) / temperature ** (k / (D / 4)), each twice."""
    cos, sin = Rope(8, temperature=100.0).table((3, 4))
    angle = [2, 2 / 10, 3, 3 / 10]  # row 2, column 3; two bands each
    expected = [math.cos(a) for a in angle for _ in range(2)]
    torch.testing.assert_close(cos[2 * 4 + 3], torch.tensor(expected))
    signs = [-1] * 4 + [1] * 4
    expected = [s * math.sin(a) for s, a in zip(signs, [a for a in angle for _ in range(2)])]
    torch.testing.assert_close(sin[2 * 4 + 3], torch.tensor(expected))


def test_fitting_scales_coordinates_to_the_pretraining_grid():
    fitted = Rope(8, pt_grid=(16, 16)).table((32, 64))[0].view(32, 64, 8)
    plain = Rope(8).table((16, 16))[0].view(16, 16, 8)
    torch.testing.assert_close(fitted[::2, ::4], plain)


def test_with_a_period_the_angle_per_patch_does_not_depend_on_the_input_size():
    rope = Rope(8, pt_grid=(16, 16))
    wide = rope.table((40, 64), period=(64.0, 64.0))[0].view(40, 64, 8)
    square = rope.table((64, 64), period=(64.0, 64.0))[0].view(64, 64, 8)
    assert torch.equal(wide, square[:40])
    assert torch.equal(square, rope.table((64, 64))[0].view(64, 64, 8))


def test_order_of_operations_is_the_reference_one():
    """x / s * s is not x for every s: index 7 of 49 patches comes out above 7."""
    grid = (49, 49)
    coordinate = torch.arange(49) / 49 * 49
    assert not torch.equal(coordinate, torch.arange(49.0))
    cos, _ = Rope(8).table(grid)
    assert torch.equal(cos.view(49, 49, 8)[:, 0, 0], coordinate.cos())


def test_indexing_xy_gives_the_first_half_the_columns():
    ij = Rope(8).table((3, 5))[0].view(3, 5, 8)
    xy = Rope(8, indexing="xy").table((5, 3))[0].view(5, 3, 8)
    assert torch.equal(xy.transpose(0, 1), ij)


def test_bfloat16_is_computed_in_float32():
    x = torch.randn(12, 1, 16)
    cos, sin = (t[:, None] for t in Rope(16).table((3, 4)))
    actual = apply_rope(x.bfloat16(), cos, sin, "standard")
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, apply_rope(x.bfloat16().float(), cos, sin, "standard").bfloat16())


def test_noise_is_for_the_centered_style_and_within_its_bounds():
    rope = Rope(16, style="centered_separate", shift=0.1, jitter=1.2, rescale=1.5)
    noise = rope.sample_noise()
    assert noise.shift.abs().max() <= 0.1
    assert ((noise.jitter >= 1 / 1.2) & (noise.jitter <= 1.2)).all()
    assert 1 / 1.5 <= noise.rescale <= 1.5
    assert not torch.equal(rope.table((4, 4), noise=noise)[0], rope.table((4, 4))[0])
    assert Rope(16).sample_noise() is None


def tables_of(tables: RopeTables, side: int) -> list[torch.Tensor]:
    grid, groups = (side, 3), window_groups((side, 3), 2)
    segments = tables.segments(grid, groups, device=torch.device("cpu"), training=False)
    return [table for part in segments for segment in part for table in (segment.cos, segment.sin)]


def rope_tables(**style) -> RopeTables:
    rope = Rope(8, pt_grid=None if style else (16, 16), **style)
    return RopeTables(rope, rope, num_special=1, window_size=2, period=None if style else 7.5)


def test_threads_share_a_full_cache():
    """More grids than the cache keeps, from threads that change places all the time."""
    tables, sides = rope_tables(), range(1, 40)
    expected = {side: tables_of(rope_tables(), side) for side in sides}

    def look_up(start: int) -> bool:
        order = [(start * 5 + i) % 39 + 1 for i in range(200)]
        return all(all(map(torch.equal, tables_of(tables, n), expected[n])) for n in order)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look_up, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert 0 < len(tables._cache) <= 16


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, "meta"], ids=str)
def test_tables_are_float32_whatever_the_defaults(default, style):
    expected = tables_of(rope_tables(**STYLES[style]), 5)
    dtype = torch.get_default_dtype()
    try:
        if default == "meta":
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(default)
        actual = tables_of(rope_tables(**STYLES[style]), 5)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)
    for table, other in zip(actual, expected, strict=True):
        assert table.dtype == torch.float32 and torch.equal(table, other)


def test_noise_is_that_of_float32_whatever_the_default():
    rope, samples = Rope(8, style="centered_separate", shift=0.1, jitter=1.2, rescale=1.5), []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        torch.manual_seed(0)
        samples.append(rope.sample_noise())
    torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, *samples))
