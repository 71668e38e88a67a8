"""Blocks with learned frequencies and blocks whose keys have no bias."""

import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay
from ropevit_mmdet.models.layers.rope import MixedRope
from tests.oracle import SMALL

MIXED = SMALL | dict(rope_style="mixed", rope_rot_type="interleaved", k_bias=False)


def model(**arguments):
    torch.manual_seed(0)
    return RoPEViT(MIXED, pretrain_img_size=56, rope_interpolation="none", **arguments).eval()


def windowed(window, *, indices=()):
    net = model(window_size=window, global_attn_indices=indices)
    net.load_state_dict(model().state_dict())
    return net


def test_tables_by_hand():
    rope = MixedRope(num_heads=2, head_dim=8, temperature=10.0)
    cos, sin = rope(torch.tensor([2.0]).view(1, 1, 1), torch.tensor([3.0]).view(1, 1, 1))
    angles = (2 * rope.freqs[0] + 3 * rope.freqs[1]).repeat_interleave(2, dim=-1)
    signs = torch.tensor([-1.0, 1.0] * 4)
    torch.testing.assert_close(cos[0], angles.cos())
    torch.testing.assert_close(sin[0], angles.sin() * signs)
    # Initially two perpendicular directions per head, and bands 1 / 10 ** (k / 2).
    lengths = rope.freqs.norm(dim=0)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 10**-0.5] * 2).expand(2, 4))


def test_one_window_equals_global_attention():
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(windowed(4)(images), model()(images), atol=1e-5, rtol=1e-5)


def test_windows_count_their_own_patches():
    """Complete and ragged windows see the frequencies at positions from 0 on."""
    images, net = torch.randn(1, 3, 84, 98), windowed(4)
    _, segments = net.rope_tables.segments(
        (6, 7), groups(net, (6, 7)), device=images.device, training=False
    )
    ragged = segments[-1]  # 2 rows, 3 columns
    special = net.arch.num_special_tokens
    assert ragged.cos[special:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert ragged.sin[special:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert not ragged.cos[:special].any() and not ragged.sin[:special].any()
    with torch.no_grad():
        assert net(images)[-1].isfinite().all()


def groups(net, grid):
    from ropevit_mmdet.models.layers.windows import window_groups

    return window_groups(grid, net.window_size)


@pytest.mark.parametrize("with_cp", [False, True])
def test_frequencies_learn(with_cp):
    net = windowed(4, indices=(1, 3)).train()
    net.load_state_dict(model().state_dict())
    for block in net.blocks:
        block.with_cp = with_cp
    for _ in range(2):  # a cached table would have lost its graph
        net.zero_grad()
        net(torch.randn(1, 3, 70, 56))[-1].square().mean().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_evaluation_follows_the_frequencies():
    net, images = model(), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        before = net(images)[-1]
        net.blocks[0].attn.rope.freqs.mul_(2.0)
        assert (net(images)[-1] - before).abs().max() > 1e-5


def test_frequencies_have_no_weight_decay_and_the_rate_of_their_block():
    optimizer = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1))
    net = model()
    settings = RoPEViTLayerDecay(optimizer, dict(layer_decay_rate=0.5)).param_groups(net)
    for i, block in enumerate(net.blocks):
        (group,) = (g for g in settings if any(p is block.attn.rope.freqs for p in g["params"]))
        assert group["weight_decay"] == 0 and group["lr"] == 0.5 ** (4 - i)


def test_keys_have_no_bias():
    net, images = model(), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        before = net(images)[-1]
        for block in net.blocks:
            block.attn.qkv.bias[32:64] = 1.0
        assert torch.equal(net(images)[-1], before)
