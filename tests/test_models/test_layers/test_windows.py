"""Windows: order and back, ragged edges, special tokens split and merged."""

import pytest
import torch

from ropevit_mmdet.models.layers.windows import (
    merge_windows,
    split_windows,
    to_grid,
    to_window_order,
    window_groups,
)

GRIDS = [(32, 48), (20, 16), (65, 85), (3, 40), (5, 7), (16, 16)]


@pytest.mark.parametrize("window", [None, 16, 4])
@pytest.mark.parametrize("grid", GRIDS)
def test_window_order_has_every_patch_once_and_reverses(grid, window):
    groups = window_groups(grid, window)
    assert sum(g.windows * g.patches for g in groups) == grid[0] * grid[1]
    grid_map = torch.arange(2 * grid[0] * grid[1] * 3).view(2, *grid, 3)
    tokens = to_window_order(grid_map, groups)
    assert torch.equal(to_grid(tokens, groups), grid_map)


def test_a_window_contains_its_patches_row_by_row():
    grid_map = torch.arange(5 * 6).view(1, 5, 6, 1)
    tokens = to_window_order(grid_map, window_groups((5, 6), 4))[0, :, 0].tolist()
    expected = [grid_map[0, :4, :4], grid_map[0, :4, 4:], grid_map[0, 4:, :4], grid_map[0, 4:, 4:]]
    assert tokens == torch.cat([part.flatten() for part in expected]).tolist()


@pytest.mark.parametrize("num_special", [0, 1, 5])
@pytest.mark.parametrize("grid", GRIDS)
def test_split_copies_special_tokens_and_merge_averages_them(grid, num_special):
    groups = window_groups(grid, 16)
    x = torch.randn(2, num_special + grid[0] * grid[1], 3, dtype=torch.float64)
    split = split_windows(x, groups, num_special)
    num_windows = sum(g.windows for g in groups)
    assert split.shape[1] == x.shape[1] + (num_windows - 1) * num_special
    torch.testing.assert_close(merge_windows(split, groups, num_special), x)

    start = 0
    for g in groups:  # change the special tokens of every window; their mean must come back
        for _ in range(g.windows):
            split[:, start : start + num_special] += start
            start += num_special + g.patches
    merged = merge_windows(split, groups, num_special)
    assert torch.equal(merged[:, num_special:], x[:, num_special:])
    if num_special:
        starts = [i for i, _ in window_starts(groups, num_special)]
        expected = x[:, :num_special] + sum(starts) / len(starts)
        torch.testing.assert_close(merged[:, :num_special], expected)


def window_starts(groups, num_special):
    start = 0
    for g in groups:
        for _ in range(g.windows):
            yield start, g
            start += num_special + g.patches
