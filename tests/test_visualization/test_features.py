"""Features: attention weights that are those of the block, tokens in their places, figures."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ropevit_mmdet import RoPEViT
from ropevit_mmdet._images import read_image
from ropevit_mmdet.apis.feature_source import from_checkpoint, from_detector
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.models.layers.windows import split_windows, window_groups
from ropevit_mmdet.visualization.features import (
    attention_weights,
    block_features,
    patch_in,
    principal_colors,
)
from ropevit_mmdet.visualization.features_figure import _distribution
from tests import oracle
from tests.test_cli.test_tools import fails, load_tool
from tests.tiny_coco import write_tiny

show_features = load_tool("show_features")

SIDE = 14 * 7, 14 * 10  # 7 x 10 patches: windows of 4 leave ragged ones on both sides


def backbone(arch=oracle.SMALL, **settings):
    """A small one with seeded weights in float64; blocks 1 and 3 of 4 are global if windowed."""
    if settings.get("window_size"):
        settings.setdefault("global_attn_indices", (1, 3))
    net = RoPEViT(arch, pretrain_img_size=56, **settings)
    return oracle.fill(net).double().eval()


def inputs_of_blocks(net, images):
    """What every block was called with: tokens and segments."""
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda block, args: seen.append(args))
        for block in net.blocks
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("rotation", ["standard", "interleaved"])
def test_weights_times_values_are_the_blocks_attention(window, rotation):
    net = backbone(dict(oracle.SMALL, rope_rot_type=rotation, qk_norm=True), window_size=window)
    images = oracle.seeded_images((2, 3, *SIDE))
    with torch.no_grad():
        for block, (x, segments) in zip(net.blocks, inputs_of_blocks(net, images), strict=True):
            x, outputs, start = block.norm1(x), [], 0
            for segment in segments:
                part = x[:, start : start + segment.windows * segment.tokens]
                start += part.shape[1]
                weights, values = attention_weights(block.attn, part, segment)
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
                out = (weights @ values).transpose(1, 2).reshape(part.shape)
                outputs.append(block.attn.proj(block.attn.norm(out)))
            torch.testing.assert_close(torch.cat(outputs, dim=1), block.attn(x, segments))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("patch", [(0, 0), (3, 4), (6, 9), (2, 8), (5, 3)])
def test_a_patchs_attention_stands_in_its_place(window, patch):
    """Against the whole matrix of the block, its rows and columns found in another way."""
    net, images = backbone(window_size=window), oracle.seeded_images((1, 3, *SIDE))
    special = net.arch.num_special_tokens
    numbers = torch.arange(70.0).view(1, 1, 7, 10)
    with torch.no_grad():
        found = block_features(net, images, blocks=range(4), patch=patch)
        for one, (x, segments) in zip(found, inputs_of_blocks(net, images), strict=True):
            assert one.windowed == (window is not None and one.block in (0, 2))
            size = window if one.windowed else 100
            top, left = patch[0] // size * size, patch[1] // size * size
            inside = torch.zeros(7, 10, dtype=torch.bool)
            inside[top : top + size, left : left + size] = True
            assert torch.equal(~one.attention.isnan(), inside.expand_as(one.attention))
            total = one.attention.nansum((1, 2)) + one.special_attention.sum(1)
            torch.testing.assert_close(total, torch.ones_like(total))

            # Every token carries its patch's number through the same split into windows.
            groups = window_groups((7, 10), window)
            order = _in_window_order(numbers, groups)
            tokens = torch.cat((torch.full((1, special, 1), -1.0), order), dim=1)
            if one.windowed:
                tokens = split_windows(tokens, groups, special)
            start, wanted = 0, patch[0] * 10 + patch[1]
            for segment in segments:
                count = segment.windows * segment.tokens
                part, ids = x[:, start : start + count], tokens[0, start : start + count, 0]
                start += count
                if wanted not in ids:
                    continue
                block = net.blocks[one.block]
                weights, _ = attention_weights(block.attn, block.norm1(part), segment)
                window_of, row = divmod(ids.tolist().index(wanted), segment.tokens)
                of_patch = weights[window_of, :, row]
                keys = ids.view(segment.windows, segment.tokens)[window_of]
                for column, key in enumerate(keys[special:].long().tolist(), start=special):
                    torch.testing.assert_close(
                        one.attention[:, key // 10, key % 10], of_patch[:, column]
                    )
                torch.testing.assert_close(one.special_attention, of_patch[:, :special])


def _in_window_order(numbers, groups):
    """[1, 1, rows, columns] to [1, N, 1], window by window, by plain loops."""
    found = []
    for g in groups:
        for row in range(g.rows):
            for column in range(g.columns):
                top, left = g.top + row * g.height, g.left + column * g.width
                found.append(numbers[0, 0, top : top + g.height, left : left + g.width].flatten())
    return torch.cat(found).view(1, -1, 1)


@pytest.mark.parametrize("window", [None, 4])
def test_patches_are_the_map_and_special_tokens_those_of_the_model(window):
    net = backbone(window_size=window, out_indices=(0, 1, 2, 3), final_norm=False)
    images = oracle.seeded_images((1, 3, *SIDE))
    with torch.no_grad():
        maps = net(images)
        found = block_features(net, images, blocks=(3, 0, -2, 1))
        last = net.forward_tokens(images)
    assert [one.block for one in found] == [3, 0, 2, 1]
    for one in found:
        torch.testing.assert_close(one.patches.permute(2, 0, 1), maps[one.block][0])
    torch.testing.assert_close(found[0].special, last[0, : net.arch.num_special_tokens])
    assert not any(block._forward_hooks for block in net.blocks)


def test_what_is_not_there_is_an_error():
    net, images = backbone(), oracle.seeded_images((1, 3, 28, 42))
    with pytest.raises(ValueError, match="block 4 is not there: the backbone has 0 to 3"):
        block_features(net, images, blocks=(4,))
    with pytest.raises(ValueError, match="patch 2 0 is outside of the image's 2 rows and 3 col"):
        block_features(net, images, patch=(2, 0))
    assert patch_in((5, 8), None) == (2, 4)


def test_principal_colors_are_the_leading_components_in_common():
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
    found = np.concatenate([one.reshape(-1, 3) for one in colors])
    for column in range(3):
        one, other = expected[:, column], 1 - expected[:, column]
        error = min(abs(found[:, column] - one).max(), abs(found[:, column] - other).max())
        assert error < 1e-3  # layer norm has an eps

    maps[0][2, 3] *= 1000  # a token of large norm changes nothing
    np.testing.assert_allclose(principal_colors(maps)[1], colors[1], atol=1e-3)
    assert abs(principal_colors(maps[1:])[0] - colors[1]).max() > 0.1
    assert (principal_colors([torch.ones(1, 1, 16)])[0] == 0.5).all()


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize(
    ("spread", "special", "bars"), [(1e-3, [50.0], 1), (5.0, [50.0], 12), (40.0, [50.0], 24)]
)
def test_bars_of_norms_can_be_seen_beside_a_far_class_token(spread, special, bars):
    norms = 10 + spread * np.linspace(0, 1, 70).reshape(7, 10)
    axis = Figure(figsize=(2.5, 2.5), dpi=100).subplots()
    _distribution(axis, norms, special, num_registers=0)
    assert len(axis.patches) == bars
    assert sum(bar.get_height() for bar in axis.patches) == 70
    assert min(bar.get_window_extent().width for bar in axis.patches) > 1.5  # pixels


def test_the_tool_on_a_birder_checkpoint(tmp_path, image, capsys):
    pytest.importorskip("birder")
    config = dict(oracle.SMALL)
    net = oracle.birder_net("rope_vit_reg4_b14", config, size=(56, 56))
    checkpoint = oracle.write_checkpoint(net, tmp_path)
    out, arch = tmp_path / "out" / "a.png", ["--arch", json.dumps(config)]
    argv = [str(checkpoint), str(image), str(image.parent / "*.png"), "--out", str(out), *arch]
    show_features.main([*argv, "--blocks", "0", "-1", "--per-head", "--size", "112"])
    for file in (out, tmp_path / "out" / "a_heads.png"):
        with Image.open(file) as figure:
            assert figure.format == "PNG" and min(figure.size) > 200
    source = from_checkpoint(str(checkpoint), config, size=112, device="cpu")
    inputs, seen = source.prepare(read_image(image))
    assert inputs.shape == (1, 3, 70, 112) and seen.shape == (70, 112, 3)  # 5 x 8 patches
    mean, std = (torch.tensor(oracle.RGB_STATS[key]).view(3, 1, 1) for key in ("mean", "std"))
    back = inputs[0] * std + mean
    torch.testing.assert_close(back, torch.tensor(seen).permute(2, 0, 1) / 255)
    capsys.readouterr()  # birder's lines too
    assert "patch 5 0 is outside" in fails(
        capsys, show_features.main, *argv, "--size", "112", "--patch", "5", "0"
    )
    assert "block 4 is not there" in fails(capsys, show_features.main, *argv, "--blocks", "4")
    assert "must end in .png" in fails(capsys, show_features.main, *argv[:-4], "--out", "a.jpg")
    many = ["--blocks", *map(str, [0] * 49)]
    assert "are 49 rows of a figure" in fails(capsys, show_features.main, *argv, *many)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_a_detectors_images_go_through_its_pipeline(tmp_path, image, bgr_to_rgb):
    config = load_config(write_tiny(tmp_path))
    settings = dict(oracle.SMALL, hidden_dim=16, mlp_dim=32)
    config.model.backbone = dict(type="RoPEViT", arch=settings, pretrain_img_size=56,
                                 window_size=2, out_indices=(1, 3))  # fmt: skip
    config.model.neck.in_channels = [16, 16]
    config.model.data_preprocessor.bgr_to_rgb = bgr_to_rgb
    model = build_detector(config)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tiny.pth")
    source = from_detector(config, str(tmp_path / "tiny.pth"), device="cpu")
    pixels = read_image(image)
    inputs, seen = source.prepare(pixels)
    assert inputs.shape == (1, 3, 64, 64) and seen.shape == (64, 64, 3)  # 43 x 64, padded
    small = np.asarray(Image.fromarray(pixels).resize((64, 43), Image.Resampling.BILINEAR))
    by_channel = [np.corrcoef(small[..., i].flat, seen[:43, :, i].flat)[0, 1] for i in range(3)]
    crossed = np.corrcoef(small[..., 0].flat, seen[:43, :, 2].flat)[0, 1]
    assert min(by_channel) > 0.6 > crossed + 0.3  # red is red, whatever the order inside
    found = block_features(source.backbone, inputs)
    assert found[0].patches.shape == (5, 5, 16) and not found[0].windowed

    wrapper = dict(type="FrozenBackbone", backbone=config.model.backbone)
    config.model.backbone = dict(wrapper, cache_dir=str(tmp_path / "maps"))
    frozen = from_detector(config, str(tmp_path / "tiny.pth"), device="cpu")
    same = block_features(frozen.backbone, frozen.prepare(pixels)[0])
    torch.testing.assert_close(same[0].patches, found[0].patches, rtol=0, atol=0)
    assert not (tmp_path / "maps").exists()

    config = load_config(write_tiny(tmp_path / "resnet"))
    torch.save({"state_dict": build_detector(config).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="backbone is a ResNet, not a RoPEViT"):
        from_detector(config, str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="give its config before it"):
        from_checkpoint(str(tmp_path / "tiny.pth"))


def test_a_bad_architecture_is_named(capsys):
    with pytest.raises(SystemExit):
        show_features.main(["a.pt", "a.png", "--arch", "{bad"])
    assert "argument --arch: {bad is no JSON: Expecting" in capsys.readouterr().err
