"""Files of timm, transformers and Meta give the maps of the library that they come from."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.formats import meta, timm
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.other_architectures import TIMM
from tests.home_files import ARCHS, SIZES, STEP, golden_maps, timm_model, to_float64, weights_of
from tests.oracle import relative_error, seeded, seeded_images

GOLDENS = Path(__file__).parents[2] / "data" / "homes.npz"
FAMILIES = {  # a member of each, and the side of its images here
    "eva02_tiny_patch14_224": 224,
    "eva02_base_patch14_224": 224,
    "eva02_base_patch16_clip_224": 224,
    "vit_medium_patch16_rope_reg1_gap_256": 256,
    "vit_small_patch16_rope_224": 224,
    "vit_small_patch16_rope_mixed_224": 224,
    "vit_small_patch16_rope_ape_224": 224,
    "vit_small_patch16_rope_mixed_ape_224": 224,
    "vit_small_patch16_dinov3": 224,
    "vit_small_plus_patch16_dinov3_qkvb": 224,
    "vit_pe_core_tiny_patch16_384": 384,
    "vit_pe_spatial_tiny_patch16_512": 512,
}
# Every switch of an `Eva` that a name may combine, with registers and a class token.
CUSTOM = dict(num_reg_tokens=3, use_pre_transformer_norm=True, init_values=0.1, rope_type="mixed")
CUSTOM |= dict(rope_grid_indexing="xy")
CUSTOM |= dict(swiglu_mlp=True, qkv_fused=True, img_size=64, use_fc_norm=False, num_classes=2)
CUSTOM_ARCH = dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48)
CUSTOM_ARCH |= dict(num_reg_tokens=3, pre_norm=True, layer_scale_init_value=0.1, k_bias=False)
CUSTOM_ARCH |= dict(mlp_layer_type="SwiGLU_FFN", rope_style="mixed", rope_rot_type="interleaved")
CUSTOM_ARCH |= dict(pos_embed_antialias=True)


def filled(model):
    """Gives timm's model seeded weights; the frequencies of a mixed RoPE are larger."""
    for name, parameter in model.named_parameters():
        scale = 3.0 if name == "rope.freqs" else 1.0
        gamma = name.replace("gamma_1", "gamma").replace("gamma_2", "gamma")
        parameter.data.copy_(scale * seeded(gamma, tuple(parameter.shape)))
    return model


def written(state, directory, suffix=".safetensors"):
    path = directory / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({key: value.contiguous() for key, value in state.items()}, path)
    return path


def timm_errors(name, directory, depth, sizes, *, width=None):
    """Errors of the maps of a model with `depth` blocks and, if given, `width` channels."""
    from timm import create_model

    arch, less = dataclasses.replace(resolve_arch(name), num_layers=depth), {}
    if width:
        mlp_dim = int(arch.mlp_dim / arch.hidden_dim * width)
        heads = width // arch.head_dim
        arch = dataclasses.replace(arch, hidden_dim=width, num_heads=heads, mlp_dim=mlp_dim)
        less = dict(embed_dim=width, num_heads=heads)
    model = filled(create_model(name, depth=depth, dynamic_img_size=True, **less))
    path = written(model.state_dict(), directory)
    ours = RoPEViT(arch, pretrain_img_size=TIMM[name].side)
    ours.load_pretrained(path)
    ours, model = ours.double().eval(), to_float64(model)
    for height, width in sizes:
        images = seeded_images((1, 3, height, width))
        with torch.no_grad():
            expected = model.forward_features(images)[:, model.num_prefix_tokens :]
            yield relative_error(ours(images)[-1].flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_family_equals_timm(name, side, tmp_path):
    pytest.importorskip("timm")
    patch = resolve_arch(name).patch_size
    sizes = [(side, side), (side + 2 * patch, side + 5 * patch)]
    assert max(timm_errors(name, tmp_path, 2, sizes, width=192)) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_every_name_equals_timm(name, tmp_path):
    pytest.importorskip("timm")
    patch, side = resolve_arch(name).patch_size, TIMM[name].side
    depth = 2 if resolve_arch(name).hidden_dim > 2048 else 4
    sizes = [(side, side), (side + patch, side + 2 * patch)]
    assert max(timm_errors(name, tmp_path, depth, sizes)) <= 1e-9


def test_timm_names_have_timms_settings(monkeypatch):
    """The arguments of timm's functions, without building a model; parity is a slow test."""
    eva = pytest.importorskip("timm.models.eva")
    from timm import get_pretrained_cfg

    monkeypatch.setattr(eva, "_create_eva", lambda variant, **arguments: arguments)
    plain = dict(embed_dim="hidden_dim", depth="num_layers", num_heads="num_heads")
    plain |= dict(patch_size="patch_size", class_token="class_token", qkv_bias="qkv_bias")
    plain |= dict(num_reg_tokens="num_reg_tokens", init_values="layer_scale_init_value")
    plain |= dict(rope_temperature="rope_temperature", use_abs_pos_emb="abs_pos_embed")
    plain |= dict(use_pre_transformer_norm="pre_norm", scale_attn_inner="attn_norm")
    plain |= dict(ref_feat_shape="pt_grid_size", rope_grid_offset="rope_grid_offset")
    defaults = inspect.signature(eva.Eva).parameters
    styles = dict(dinov3="centered_periods", mixed="mixed")
    for name, published in TIMM.items():
        arch, given = resolve_arch(name), getattr(eva, name)()
        for theirs, ours in plain.items():
            assert given.get(theirs, defaults[theirs].default) == getattr(arch, ours), (name, ours)
        norm = given.get("norm_layer")
        assert arch.norm_layer_eps == (norm.keywords["eps"] if norm else 1e-6), name
        style = "default" if arch.pt_grid_size else "axial"
        assert arch.rope_style == styles.get(given.get("rope_type"), style), name
        indexing = "xy" if arch.rope_style in ("axial", "mixed") else arch.rope_grid_indexing
        assert indexing == given.get("rope_grid_indexing", "ij"), name
        cfg = get_pretrained_cfg(name)
        assert (published.side, published.tag) == (cfg.input_size[-1], cfg.tag), name
        assert published.stats in (None, (cfg.mean, cfg.std)), name


@pytest.mark.parametrize("case", ARCHS)
def test_golden(case, tmp_path):
    """Holds without the libraries: weights are seeded, maps are committed."""
    goldens, model = np.load(GOLDENS), RoPEViT(ARCHS[case])
    model.load_pretrained(written(weights_of(case), tmp_path, ".pth"))
    model.double().eval()
    for height, width in SIZES:
        with torch.no_grad():
            (actual,) = model(seeded_images((1, 3, height, width)))
        expected = torch.from_numpy(goldens[f"{case} {height}x{width}"])
        assert relative_error(actual.flatten()[::STEP], expected) <= 1e-9


@pytest.mark.parametrize("case", ARCHS)
def test_goldens_are_of_the_libraries(case):
    pytest.importorskip("transformers" if case.startswith("transformers") else "timm")
    goldens = np.load(GOLDENS)
    for key, actual in golden_maps(case).items():
        assert relative_error(torch.from_numpy(actual), torch.from_numpy(goldens[key])) <= 1e-12


@pytest.fixture(scope="module")
def custom():
    pytest.importorskip("timm")
    return filled(timm_model(**CUSTOM))


def custom_net(**arguments):
    return RoPEViT(CUSTOM_ARCH, pretrain_img_size=64, **arguments)


@pytest.mark.parametrize("size", [(64, 64), (96, 144)])
def test_custom_equals_timm(custom, size, tmp_path):
    """Registers and class token change places, also in the position embedding."""
    ours = custom_net()
    ours.load_pretrained(written(custom.state_dict(), tmp_path))
    expected, images = to_float64(filled(timm_model(**CUSTOM))), seeded_images((1, 3, *size))
    with torch.no_grad():
        actual = ours.double().eval().forward_tokens(images)
        tokens = expected.forward_features(images)
    tokens = torch.cat((tokens[:, 1:4], tokens[:, :1], tokens[:, 4:]), dim=1)
    assert relative_error(actual, tokens) <= 1e-9


@pytest.fixture
def case_of(request):
    """The weights of a case, and a model for them."""

    def get(case):
        if case == "custom":
            return request.getfixturevalue("custom").state_dict(), custom_net()
        return weights_of(case), RoPEViT(ARCHS[case])

    return get


@pytest.mark.parametrize("case", ["custom", *ARCHS])
def test_a_vit_in_a_larger_model(case, case_of, tmp_path):
    state, model = case_of(case)
    larger = {f"student.backbone.{key}": value for key, value in state.items()}
    larger["criterion.weight"] = torch.zeros(2)
    model.load_pretrained(written(state, tmp_path, ".pth"))
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_pretrained(written(larger, tmp_path, ".pth"))
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("base", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files(base, hf_hub, tmp_path):
    state, directory = weights_of("transformers"), "/me/vit/resolve/main"
    stem, _, suffix = base.partition(".")
    files = {key: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, key in enumerate(state)}
    for file in set(files.values()):
        part = {key: value for key, value in state.items() if files[key] == file}
        written(part, tmp_path, ".safetensors" if suffix == "safetensors" else ".pth").rename(
            tmp_path / file
        )
        hf_hub.files[f"{directory}/{file}"] = (tmp_path / file).read_bytes()
    index = tmp_path / f"{base}.index.json"
    index.write_text(json.dumps(dict(weight_map=files)))
    hf_hub.files[f"{directory}/{index.name}"] = index.read_bytes()
    whole = read_checkpoint(written(state, tmp_path, ".pth")).state
    for path in (index, resolve_weights(f"hf://me/vit/{index.name}")):
        torch.testing.assert_close(read_checkpoint(path).state, whole, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"one of several parts, which their \.index\.json names"):
        read_checkpoint(tmp_path / files["embeddings.cls_token"])
    (tmp_path / files["norm.weight"]).unlink()
    with pytest.raises(UserError, match="checkpoint not found"):
        read_checkpoint(index)
    index.write_text(json.dumps(dict(weight_map=list(files))))
    with pytest.raises(UserError, match="is JSON text"):
        read_checkpoint(index)


@pytest.mark.parametrize("case", ["custom", *ARCHS])
def test_a_weight_too_few_or_too_many_is_an_error(case, case_of, tmp_path):
    state, model = case_of(case)
    dropped = next(key for key in state if "1.mlp" in key and key.endswith("weight"))
    for changed in (
        {key: value for key, value in state.items() if key != dropped},
        state | {dropped.replace("mlp", "more"): torch.zeros(1)},
    ):
        with pytest.raises(UserError, match="not in"):
            model.load_pretrained(written(changed, tmp_path, ".pth"))


def test_every_parameter_gets_timms_gradient(custom, tmp_path):
    ours, theirs = custom_net(), filled(timm_model(**CUSTOM)).eval()
    ours.load_pretrained(written(custom.state_dict(), tmp_path))
    images = seeded_images((1, 3, 64, 96)).float()
    ours.eval()(images)[-1].square().mean().backward()
    theirs.forward_features(images)[:, 4:].square().mean().backward()
    gradients = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    expected = timm.read(gradients, {})["state"]
    for name, parameter in ours.named_parameters():
        # Registers and class token change places in the position embedding of 20 tokens.
        assert relative_error(parameter.grad, expected[name]) <= 1e-4, name
        assert parameter.grad.abs().sum() > 0, name
    assert (ours.blocks[0].attn.qkv.bias.grad.chunk(3)[1] == 0).all()


def test_another_rope_is_an_error(tmp_path):
    """Shapes do not show the RoPE; files of timm with the shapes of a name need its settings."""
    name = "vit_tiny_patch16_dinov3_qkvb"
    arch = resolve_arch(name)
    state = RoPEViT(arch).state_dict()
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    state = {key.replace(k := key[-9:], names.get(k, k)): value for key, value in state.items()}
    path = written(state, tmp_path)
    assert list(read_checkpoint(path).named_archs()) == [name]
    assert read_checkpoint(path).rgb_stats["mean"] == (0.485, 0.456, 0.406)
    RoPEViT(name).load_pretrained(path)
    for wrong in (dict(rope_temperature=50.0), dict(norm_layer_eps=1e-6)):
        model = RoPEViT(dataclasses.replace(arch, **wrong))
        with pytest.raises(UserError, match=f"set arch='{name}'"):
            model.load_pretrained(path)


def test_config_json_states_the_architecture(tmp_path):
    path = written(weights_of("transformers"), tmp_path).rename(tmp_path / "model.safetensors")
    config = dict(model_type="dinov3_vit", hidden_size=32, num_attention_heads=2, rope_theta=50.0)
    config |= dict(patch_size=16, num_hidden_layers=2, intermediate_size=48, num_register_tokens=3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = dict(image_mean=[0.43, 0.411, 0.296], image_std=[0.213, 0.156, 0.143])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    with pytest.raises(UserError, match=r"rope_temperature 50\.0 \(not.*rope_temperature=50\.0"):
        RoPEViT(ARCHS["transformers"]).load_pretrained(path)
    RoPEViT(ARCHS["transformers"] | dict(rope_temperature=50.0)).load_pretrained(path)
    assert read_checkpoint(path).rgb_stats["std"] == (0.213, 0.156, 0.143)
    (tmp_path / "config.json").write_text(json.dumps(dict(architecture="vit_base_patch14_dinov2")))
    with pytest.raises(UserError, match="'vit_base_patch14_dinov2', no RoPE ViT"):
        read_checkpoint(path)


def test_periods_of_meta_show_heads_and_temperature(tmp_path):
    state = weights_of("Meta DINOv3")
    path = written(state, tmp_path, ".pth")
    with pytest.raises(UserError, match=r"num_heads 2 \(not 4\)"):
        RoPEViT(ARCHS["Meta DINOv3"] | dict(num_heads=4)).load_pretrained(path)
    state["rope_embed.periods"] = state["rope_embed.periods"] ** 0.5
    with pytest.raises(UserError, match="rope_temperature"):
        RoPEViT(ARCHS["Meta DINOv3"]).load_pretrained(written(state, tmp_path, ".pth"))


def test_clip_is_not_taken_for_a_perception_encoder():
    state = {
        key.removeprefix("visual."): value for key, value in weights_of("Meta PE core").items()
    }
    assert meta.matches(state)
    assert not meta.matches({k: v for k, v in state.items() if not k.startswith("attn_pool")})


def test_a_swin_is_no_rope_vit(tmp_path):
    state = {f"layers.{i}.blocks.0.norm1.weight": torch.ones(8) for i in range(2)}
    with pytest.raises(UserError, match="no weights of a RoPE ViT, but layers"):
        read_checkpoint(written(state | {"patch_embed.proj.weight": torch.ones(2)}, tmp_path))


def test_load_from_needs_a_detector(tmp_path):
    path = written(weights_of("transformers"), tmp_path)
    with pytest.raises(UserError, match="is transformers's, of a backbone only; to train"):
        read_detector_checkpoint(path)
