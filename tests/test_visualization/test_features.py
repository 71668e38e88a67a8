"""Features: attention weights equal those of the block, tokens are in their places."""

import itertools
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.models.layers.windows import split_windows, to_window_order, window_groups
from ropevit_mmdet.visualization.features import (
    attention_weights,
    block_features,
    principal_colors,
)
from tests import oracle

SIDE = 14 * 7, 14 * 10  # 7 x 10 patches: windows of 4 leave ragged ones on both sides


def backbone(arch=oracle.SMALL, **settings):
    """A small one with seeded weights in float64; blocks 1 and 3 of 4 are global if windowed."""
    if settings.get("window_size"):
        settings.setdefault("global_attn_indices", (1, 3))
    net = RoPEViT(arch, pretrain_img_size=56, **settings)
    return oracle.fill(net).double().eval()


def parts_of_blocks(net, images):
    """Of every block: itself, tokens and segments, and for each segment its slice of the tokens."""
    calls = []
    with ExitStack() as hooks, torch.no_grad():
        for block in net.blocks:
            keep = lambda block, args: calls.append((block, block.norm1(args[0]), args[1]))  # noqa: E731
            hooks.enter_context(block.register_forward_pre_hook(keep))
        net(images)
    for block, x, segments in calls:
        ends = [*itertools.accumulate(one.windows * one.tokens for one in segments)]
        yield block, x, segments, [slice(*pair) for pair in itertools.pairwise([0, *ends])]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("rotation", ["standard", "interleaved"])
@torch.no_grad()
def test_weights_times_values_equal_the_attention_of_the_block(window, rotation):
    net = backbone(dict(oracle.SMALL, rope_rot_type=rotation, qk_norm=True), window_size=window)
    images = oracle.seeded_images((2, 3, *SIDE))
    for block, x, segments, slices in parts_of_blocks(net, images):
        outputs = []
        for segment, part in zip(segments, slices, strict=True):
            weights = attention_weights(block.attn, x[:, part], segment)
            values = block.attn.heads(block.attn.qkv(x[:, part]), segment)[2]
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            out = (weights @ values).transpose(1, 2).reshape(x[:, part].shape)
            outputs.append(block.attn.proj(block.attn.norm(out)))
        torch.testing.assert_close(torch.cat(outputs, dim=1), block.attn(x, segments))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("patch", [(0, 0), (3, 4), (6, 9), (2, 8), (5, 3)])
@torch.no_grad()
def test_the_attention_of_a_patch_is_in_its_place(window, patch):
    """Against the weights of all tokens, each of which carries the index of its patch."""
    net, images = backbone(window_size=window), oracle.seeded_images((1, 3, *SIDE))
    special, groups = net.arch.num_special_tokens, window_groups((7, 10), window)
    order = to_window_order(torch.arange(70.0).view(1, 7, 10, 1), groups)
    merged = torch.cat((torch.full((1, special, 1), -1.0), order), dim=1)
    features = block_features(net, images, blocks=range(4), patch=patch)
    parts = parts_of_blocks(net, images)
    for one, (block, x, segments, slices) in zip(features, parts, strict=True):
        assert one.windowed == (window is not None and one.block in (0, 2))
        ids = split_windows(merged, groups, special) if one.windowed else merged
        expected = torch.full((2, 70), float("nan"), dtype=torch.float64)
        for segment, part in zip(segments, slices, strict=True):
            weights = attention_weights(block.attn, x[:, part], segment)
            of_windows = ids[0, part, 0].long().view(segment.windows, segment.tokens).tolist()
            for of_window, tokens in zip(weights, of_windows, strict=True):
                if patch[0] * 10 + patch[1] in tokens:
                    row = of_window[:, tokens.index(patch[0] * 10 + patch[1])]
                    expected[:, tokens[special:]] = row[:, special:]
                    torch.testing.assert_close(one.special_attention, row[:, :special])
        torch.testing.assert_close(one.attention.flatten(1), expected, equal_nan=True)


@pytest.mark.parametrize("window", [None, 4])
def test_patches_are_the_feature_map_and_special_tokens_those_of_the_model(window):
    net = backbone(window_size=window, out_indices=(0, 1, 2, 3), final_norm=False)
    images = oracle.seeded_images((1, 3, *SIDE))
    with torch.no_grad():
        maps = net(images)
        features = block_features(net, images, blocks=(3, 0, -2, 1))
        last = net.forward_tokens(images)
    assert [one.block for one in features] == [3, 0, 2, 1]
    for one in features:
        torch.testing.assert_close(one.patches.permute(2, 0, 1), maps[one.block][0])
    torch.testing.assert_close(features[0].special, last[0, : net.arch.num_special_tokens])
    assert not any(block._forward_hooks for block in net.blocks)


def test_principal_colors_are_the_leading_common_components():
    """Against numpy's SVD, of two images of unequal size; signs are free there."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(5, 8, 16, generator=generator), torch.randn(6, 3, 16, generator=generator)]
    colors = principal_colors(maps)
    assert [one.shape for one in colors] == [(5, 8, 3), (6, 3, 3)]
    tokens = np.concatenate([one.reshape(-1, 16).double().numpy() for one in maps])
    tokens = tokens - tokens.mean(1, keepdims=True)
    tokens = tokens / tokens.std(1, keepdims=True)
    tokens = tokens - tokens.mean(0)
    values = tokens @ np.linalg.svd(tokens)[2][:3].T
    low, high = np.percentile(values, [1, 99], axis=0)
    expected = np.clip((values - low) / (high - low), 0, 1)
    values = np.concatenate([one.reshape(-1, 3) for one in colors])
    for column in range(3):
        one, other = expected[:, column], 1 - expected[:, column]
        error = min(abs(values[:, column] - one).max(), abs(values[:, column] - other).max())
        assert error < 1e-3  # layer norm has an eps

    maps[0][2, 3] *= 1000  # a token of large norm changes nothing
    np.testing.assert_allclose(principal_colors(maps)[1], colors[1], atol=1e-3)
    assert abs(principal_colors(maps[1:])[0] - colors[1]).max() > 0.1
    assert np.isfinite(principal_colors([torch.ones(1, 1, 16)])[0]).all()
