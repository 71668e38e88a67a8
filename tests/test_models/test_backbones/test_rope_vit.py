"""RoPEViT's arguments, sizes, freezing and gradients. Parity with birder: test_parity.py."""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.models.layers.block import DropPath
from tests.oracle import SMALL, fill, seeded_images

WINDOWS = [{}, dict(window_size=4, global_attn_indices=(2,))]


def small(**arguments) -> RoPEViT:
    return fill(RoPEViT(SMALL, **arguments)).eval()


def test_the_default_is_the_published_architecture():
    with torch.device("meta"):
        model = RoPEViT()
    assert sum(p.numel() for p in model.parameters()) == 85_712_640
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"patch_embed", "pos_embed", "cls_token", "reg_tokens", "blocks", "norm"}


def test_out_indices_return_the_feature_maps_of_their_blocks():
    full = small(out_indices=(1, -1))
    images = seeded_images((1, 3, 112, 140)).float()
    second, last = full(images)
    cut = small(out_indices=1)
    assert len(cut.blocks) == 2 and not list(cut.norm.parameters())
    torch.testing.assert_close(cut(images)[0], second)
    torch.testing.assert_close(small()(images)[0], last)
    torch.testing.assert_close(
        full.norm(small(final_norm=False)(images)[0].mT.transpose(1, 3)), last.mT.transpose(1, 3)
    )


def test_tiling_repeats_the_pretraining_field():
    model = small(pos_embed_mode="tile")
    field = model.grid_pos_embed((16, 16))
    tiled = model.grid_pos_embed((24, 40))
    assert torch.equal(tiled[:, :16, 16:32], field)
    assert torch.equal(tiled[:, 16:, 32:], field[:, :8, :8])


def test_rope_in_pixels_equals_fitting_at_that_size_and_differs_elsewhere():
    images = seeded_images((1, 3, 448, 448)).float()
    fitted, fixed = small(), small(rope_interpolation=448)
    assert torch.equal(fitted(images)[0], fixed(images)[0])
    assert not torch.allclose(fitted(images[..., :224])[0], fixed(images[..., :224])[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(arch="rope_vit_reg4_b15"), "rope_vit_reg4_b15.*did you mean.*rope_vit_reg4_b1"),
        (dict(arch=dict(SMALL, depth=3)), "unknown key 'depth'"),
        (dict(arch=dict(patch_size=14)), "needs 'num_layers'.*needs 'num_heads'"),
        (dict(pretrain_img_size=225), r"pretrain_img_size.*multiples of.*225"),
        (dict(global_attn_indices=(1,)), "global_attn_indices without window_size"),
        (dict(window_size=4, global_attn_indices=(4,)), "global_attn_indices.*4"),
        (dict(rope_interpolation="stretch"), "stretch"),
        (dict(rope_interpolation=None), "rope_interpolation.*None"),
        (dict(pretrain_img_size=224.0), r"pretrain_img_size.*224\.0"),
        (dict(drop_path_rate="0.1"), "drop_path_rate.*0.1"),
        (dict(pos_embed_mode="crop"), "crop"),
        (dict(out_indices=(3, 1)), r"out_indices.*\(3, 1\)"),
        (dict(drop_path_rate=2.0), "drop_path_rate.*2.0"),
        (dict(frozen_stages=5, window_size=0), "window_size.*0; frozen_stages.*5"),
        (dict(patch_size=15, arch=dict(SMALL, patch_size=16, stem_type="hmlp")), "hmlp.*15"),
        (dict(arch=dict(SMALL, num_heads=5)), r"num_heads times a multiple of 4, got \(32, 5\)"),
        (dict(arch=dict(SMALL, rope_style="axial")), "rope_rot_type of 'axial' must be 'inter"),
        (dict(arch=dict(SMALL, rope_shift_coords=0.1)), "rope_shift_coords.*'default'.*0.1"),
    ],
)
def test_invalid_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        RoPEViT(**dict(dict(arch=SMALL), **arguments))


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(1, 3, 0, 20), r"pixels.*\[1, 3, 0, 20\]"),
        (torch.zeros(1, 4, 20, 20), r"\[1, 4, 20, 20\]"),
    ],
)
def test_images_without_pixels_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        small()(images)


def test_images_with_nan_are_a_warning_as_memory_of_a_warm_up_may_be():
    images = torch.full((1, 3, 28, 28), float("nan"))
    with pytest.warns(UserWarning, match="images contain NaN"):
        assert small()(images)[0].shape == (1, 32, 2, 2)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_every_parameter_gets_a_gradient(windows):
    model = fill(RoPEViT(SMALL, **windows)).train()
    model(seeded_images((2, 3, 98, 84)).float())[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("piece_tokens", [10, 40, 1100])
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_activation_checkpointing_changes_nothing(windows, piece_tokens, monkeypatch):
    """Nor do the pieces of a CPU; all pieces of an image share its drop path and dropout."""
    monkeypatch.setattr("ropevit_mmdet.models.layers._cpu.PIECE_TOKENS", piece_tokens)
    images, outputs, gradients = seeded_images((2, 3, 98, 84)), [], []
    for with_cp in (False, True):
        arch = dict(SMALL, drop_path_rate=0.5, projection_dropout=0.2)
        model = RoPEViT(arch, with_cp=with_cp, **windows)
        model = fill(model.double()).train()
        torch.manual_seed(0)
        outputs.append(model(images)[0])
        outputs[-1].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stages", [-1, 0, 2, 4])
def test_frozen_stages_take_no_gradient_and_stay_in_eval_mode(stages):
    model = RoPEViT(SMALL, frozen_stages=stages, drop_path_rate=0.9).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    embedding = {"pos_embed", "cls_token", "reg_tokens"} | {
        f"patch_embed.proj.{name}" for name in ("weight", "bias")
    }
    assert frozen & embedding == (embedding if stages >= 0 else set())
    for i, block in enumerate(model.blocks):
        assert all(p.requires_grad == (i >= stages) for p in block.parameters())
        assert block.drop_path.training == (i >= stages)
    assert all(p.requires_grad == (stages < 4) for p in model.norm.parameters())
    if stages == 4:
        images = seeded_images((1, 3, 56, 56)).float()
        assert torch.equal(model(images)[0], model(images)[0])  # no drop path


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_drop_path_is_sampled_per_image(windows):
    """With rate 1 only the embedding remains."""
    torch.manual_seed(0)
    arch = dict(SMALL, drop_path_uniform=True)
    model = fill(RoPEViT(arch, drop_path_rate=1.0, final_norm=False, **windows))
    images = seeded_images((2, 3, 98, 84)).float()
    grid_map = model.patch_embed(images)
    expected = (grid_map + model.grid_pos_embed((7, 6))).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.train()(images)[0], expected)

    drop = DropPath(0.5).train()
    x = torch.ones(64, 10, 3)
    kept = drop(x)
    assert all(image.unique().numel() == 1 for image in kept)
    assert set(kept.unique().tolist()) == {0.0, 2.0}


def test_a_table_built_in_inference_mode_works_in_training():
    model = small().train()
    images = seeded_images((1, 3, 70, 70)).float()
    with torch.inference_mode():
        model(images)
    model(images)[0].sum().backward()


TRACERS = "ignore:.*(is deprecated|might cause the trace|may be an old|batching rule)"


@pytest.mark.filterwarnings(TRACERS)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_graphs_of_a_trace_are_the_same_at_every_call(windows):
    """`torch.jit.trace` compares two traces: no table of the first may be in the second."""
    model, images = small(**windows), seeded_images((2, 3, 98, 84)).float()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            traced = torch.jit.trace(model, images)
            torch.testing.assert_close(traced(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(TRACERS)
def test_tensorboard_draws_the_graph():
    drawing = pytest.importorskip("torch.utils.tensorboard._pytorch_graph")
    graph, _ = drawing.graph(small(), seeded_images((1, 3, 42, 28)).float())
    assert len(graph.node) > 100


@pytest.mark.filterwarnings(TRACERS)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_gradients_per_image_equal_those_of_single_images(windows):
    model, images = small(**windows).double(), seeded_images((2, 3, 98, 84))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights, image):
        return functional_call(model, weights, (image[None],))[0].square().mean()

    actual = vmap(grad(loss), (None, 0))(weights, images)
    for i in range(2):
        expected = torch.autograd.grad(
            model(images[i : i + 1])[0].square().mean(), [*model.parameters()]
        )
        torch.testing.assert_close([each[i] for each in actual.values()], [*expected])
    with torch.no_grad():
        mapped = vmap(lambda image: model(image[None])[0][0])(images)
        torch.testing.assert_close(mapped, model(images)[0])


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_tensors_without_values_leave_no_table(windows):
    model, images = small(**windows), seeded_images((2, 3, 98, 84)).float()
    expected, mode = model(images)[0], FakeTensorMode(allow_non_fake_inputs=True)
    for used in (model, small(**windows)):  # with tables, and without
        before = dict(used.rope_tables._cache)
        with mode, torch.no_grad():
            assert used(torch.empty(2, 3, 98, 84))[0].shape == expected.shape
        with FlopCounterMode(display=False), torch.no_grad():
            used(images)
        assert used.rope_tables._cache == before
        assert torch.equal(used(images)[0], expected)
    meta = copy.deepcopy(model).to("meta")
    assert meta(images.to("meta"))[0].shape == expected.shape
