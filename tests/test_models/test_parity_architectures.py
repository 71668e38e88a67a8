"""Every architecture of birder and every switch of its config, element by element, in float64."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("birder")

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.models.layers.rope import Rope
from ropevit_mmdet.weights.architectures import arch_names
from ropevit_mmdet.weights.formats.birder import IGNORED
from tests.oracle import birder_map, birder_net, relative_error, seeded_images, write_checkpoint
from tests.parity_cases import (
    BASE,
    GRID,
    GRIDS,
    SWITCHES,
    distinct_archs,
    full_errors,
    load,
    modes_of,
    pixels,
    published_networks,
    small_config,
    training_maps,
    worst_error,
)

TOLERANCE = 1e-9


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Networks this small only wait for their threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(config, directory, name="rope_vit_reg4_b14", grid=(GRID, GRID)):
    return write_checkpoint(birder_net(name, config, size=pixels(config, grid)), directory)


def compare(config, directory, name="rope_vit_reg4_b14", grid=(GRID, GRID), grids=GRIDS):
    path = write(config, directory, name, grid)
    sizes = [pixels(config, g) for g in grids]
    for mode in modes_of(config):
        error = worst_error(
            path, config, sizes, mode=mode, name=name, pretrain=pixels(config, grid)
        )
        assert error <= TOLERANCE, mode


@pytest.mark.parametrize("name", distinct_archs())
def test_every_architecture_equals_birder(name, tmp_path):
    compare(small_config(name), tmp_path, name)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_equals_birder(switch, tmp_path):
    compare(BASE | SWITCHES[switch], tmp_path)


INVISIBLE = (  # not visible in weights: a config without them loads, and is wrong
    "activation silu, activation quick_gelu, position embedding bilinear, "
    "position embedding antialiased, heads of 4 channels, offset, temperature, interleaved, "
    "indexing xy, pt_grid_size, axial, centered"
).split(", ")


@pytest.mark.parametrize("switch", INVISIBLE)
def test_the_comparison_detects_a_missing_switch(switch, tmp_path):
    config = BASE | SWITCHES[switch]
    sizes = [pixels(config, grid) for grid in GRIDS]
    pretrain = pixels(config, (GRID, GRID))
    assert worst_error(write(config, tmp_path), config, sizes, arch=BASE, pretrain=pretrain) > 1e-3


@pytest.mark.parametrize("switch", SWITCHES)
def test_training_equals_birder_sample_by_sample(switch, tmp_path):
    """The same seed drops the same values and moves the same coordinates."""
    config = BASE | SWITCHES[switch]
    path, size = write(config, tmp_path), pixels(config, (GRID, GRID))
    net = birder_net("rope_vit_reg4_b14", config, size=size)
    model = load(path, config, pretrain_img_size=size, rope_interpolation="none", final_norm=False)
    images = seeded_images((3, 3, *pixels(config, (6, 4))))
    expected = training_maps(net, images)
    assert relative_error(training_maps(model.double(), images), expected) <= TOLERANCE
    if any("drop" in key or "coords" in key for key in SWITCHES[switch]):
        assert relative_error(training_maps(net, images, seed=4), expected) > 1e-3


def refused(content, path, model) -> bool:
    torch.save(content, path)
    try:
        model.load_pretrained(str(path))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", distinct_archs(patch_size=16))
def test_no_key_is_dropped_silently(name, tmp_path):
    """Missing keys and stray keys of every part are errors."""
    config = small_config(name)
    path = write(config, tmp_path, name)
    content = torch.load(path, weights_only=True)
    state = content["state"]
    model = RoPEViT(config, pretrain_img_size=pixels(config, (GRID, GRID)))
    assert not refused(content, path, model)
    for key in [key for key in state if not key.startswith((*IGNORED, "encoder.block.1."))]:
        less = {k: v for k, v in state.items() if k != key}
        assert refused(content | {"state": less}, path, model), f"{key} may be missing"
    blocks = ("encoder.block.1.stray", "encoder.block.2.norm1.weight", "encoder.block.0.mlp.norm.x")
    for key in (*blocks, "stray", "norm.stray", "encoder.pre_block.9.stray", "conv_proj.stray"):
        more = state | {key: torch.zeros(config["hidden_dim"])}
        assert refused(content | {"state": more}, path, model), f"{key} is ignored"


def test_no_key_of_a_part_that_is_not_built_is_dropped_silently(tmp_path):
    path = write(BASE, tmp_path)
    content = torch.load(path, weights_only=True)
    arguments = dict(pretrain_img_size=pixels(BASE, (GRID, GRID)), out_indices=0)
    load(path, BASE, **arguments)
    for change in ({"encoder.block.1.stray": torch.zeros(1)}, {"norm.stray": torch.zeros(1)}):
        torch.save(content | {"state": content["state"] | change}, path)
        with pytest.raises(ValueError, match="stray"):
            load(path, BASE, **arguments)
    for key in ("encoder.block.1.attn.proj.bias", "norm.bias"):
        less = {k: v for k, v in content["state"].items() if k != key}
        torch.save(content | {"state": less}, path)
        with pytest.raises(ValueError, match=r"proj\.bias|norm\.bias"):
            load(path, BASE, **arguments)


def test_pretraining_that_was_not_square(tmp_path):
    for grid in ((4, 7), (7, 4)):
        compare(BASE, tmp_path, grid=grid, grids=(grid, (7, 4), (9, 8)))


# Where birder has two answers: docs/parity.md.


def test_rows_that_the_patch_does_not_divide_are_padded_not_cut(tmp_path):
    """birder's convolution skips them; a detector must see its borders."""
    path, size = write(BASE, tmp_path), pixels(BASE, (GRID, GRID))
    net = birder_net("rope_vit_reg4_b14", BASE, size=size)
    model = load(path, BASE, pretrain_img_size=size, rope_interpolation="none").double()
    images = seeded_images((1, 3, 85, 100))
    padded = torch.nn.functional.pad(images, (0, 12, 0, 11))
    with torch.no_grad():
        actual = model(images)[0]
    assert actual.shape[2:] == (6, 7)
    assert birder_map(net, images, final_norm=True).shape[2:] == (5, 6)
    assert relative_error(actual, birder_map(net, padded, final_norm=True)) <= TOLERANCE


def test_position_embedding_is_that_of_dynamic_size_not_of_adjust_size(tmp_path):
    """`adjust_size` resizes with antialias, the forward pass without: smaller grids differ."""
    path, size = write(BASE, tmp_path), pixels(BASE, (GRID, GRID))
    model = load(path, BASE, pretrain_img_size=size, rope_interpolation="none").double()
    small = pixels(BASE, (3, 2))
    images = seeded_images((1, 3, *small))
    with torch.no_grad():
        actual = model(images)[0]
    net = birder_net("rope_vit_reg4_b14", BASE, size=size)
    assert relative_error(actual, birder_map(net, images, final_norm=True)) <= TOLERANCE
    net.adjust_size(small)
    assert relative_error(actual, birder_map(net, images, final_norm=True)) > 1e-3


def test_position_embedding_is_resized_in_float32_in_float64_models_too(tmp_path):
    path, size = write(BASE, tmp_path), pixels(BASE, (GRID, GRID))
    model = load(path, BASE, pretrain_img_size=size).double()
    actual = model.grid_pos_embed((8, 6))
    embed = model.pos_embed[:, 5:].view(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    in_float64 = torch.nn.functional.interpolate(embed, size=(8, 6), mode="bicubic")
    error = relative_error(actual, in_float64.permute(0, 2, 3, 1))
    assert 1e-9 < error < 1e-5


def test_axial_gives_the_first_channels_the_columns_and_default_the_rows():
    """birder's order of each style; only `default` has an option for it."""
    for style, switches in (("axial", dict(rotation="interleaved")), ("default", {})):
        cos = Rope(16, style=style, **switches).table((3, 4))[0].view(3, 4, 16)
        first = cos[..., :8]
        by_rows = torch.equal(first[:, 0], first[:, 3])
        by_columns = torch.equal(first[0], first[2])
        assert (by_rows, by_columns) == ((False, True) if style == "axial" else (True, False))


def test_out_indices_of_birder_come_in_the_order_of_the_blocks():
    """birder names its stages by position but fills them block by block."""
    net = birder_net("rope_vit_reg4_b14", BASE | dict(out_indices=[1, 0]), size=(80, 80))
    images = seeded_images((1, 3, 80, 80))
    ascending = birder_net("rope_vit_reg4_b14", BASE | dict(out_indices=[0, 1]), size=(80, 80))
    assert torch.equal(
        net.detection_features(images)["stage1"], ascending.detection_features(images)["stage1"]
    )
    with pytest.raises(ValueError, match="ascending"):
        RoPEViT(BASE | dict(out_indices=[1, 0]), pretrain_img_size=80)


@pytest.mark.slow
@pytest.mark.parametrize("network, side", published_networks())
def test_every_published_network_equals_birder_in_full(network, side, tmp_path):
    for _, _, error in full_errors(network, side, tmp_path):
        assert error <= TOLERANCE


def test_the_table_in_the_docs_is_complete():
    text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text()
    for name in arch_names():
        assert f"| `{name}` | small |" in text
    for switch in SWITCHES:
        assert f"| {switch} |" in text
    for network, side in published_networks():
        assert f"| `{network}` | full | {side} x {side}" in text
