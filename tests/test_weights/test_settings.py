"""A checkpoint that contradicts the arguments: what it says, and that its line can be pasted."""

import re

import pytest
import torch

pytest.importorskip("birder")

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.settings import arch_argument
from tests.oracle import birder_net, write_checkpoint
from tests.parity_cases import BASE, SWITCHES

SIZE = (80, 80)
CENTERED = SWITCHES["centered"]


def write(directory, config, override=None):
    net = birder_net("rope_vit_reg4_b14", config, size=SIZE)
    return write_checkpoint(net, directory, config=override)


def load(path, arch, size=SIZE):
    RoPEViT(arch, pretrain_img_size=size).load_pretrained(str(path))


def advice(path, arch, size=SIZE) -> str:
    with pytest.raises(ValueError, match=str(path)) as error:
        load(path, arch, size)
    assert "\n" not in str(error.value)
    return str(error.value)


def pasted(message: str):
    """The value of arch= in a message, run as the source that it is."""
    return eval(re.search(r"set arch=(dict\(.*?\)|'\w+')($|,? |\.)", message)[1])


@pytest.mark.parametrize(
    "switch, says",
    [
        ("hmlp", "stem_type hmlp"),
        ("hmlp, BatchNorm2d", "stem_batch_norm True"),
        ("activation prelu", "prelu True"),
        ("NormFormer, RMSNorm", "norm_layer_type RMSNorm"),
        ("norm after pool", "norm_after_pool True"),
        ("no post-norm", "post_norm False"),
        ("pre-norm", "pre_norm True"),
        ("position embedding of patches only", r"pos_embed_special_tokens False \(not True\)"),
        ("no position embedding", "abs_pos_embed False"),
        ("no bias in qkv", "qkv_bias False"),
        ("QK-norm", "qk_norm True"),
        ("attention norm", "attn_norm True"),
        ("LayerScale", "layer_scale True"),
        ("16 registers", "num_reg_tokens 16"),
        ("no special tokens", "class_token False"),
        ("odd mlp_dim, SwiGLU", "mlp_dim 37"),
    ],
)
def test_every_setting_that_weights_show_is_named_and_the_line_loads(switch, says, tmp_path):
    config = BASE | SWITCHES[switch]
    path = write(tmp_path, config)
    load(path, config)
    message = advice(path, BASE)
    assert re.search(says, message)
    load(path, pasted(message))
    back = advice(write(tmp_path, BASE), config)  # the other way round
    load(tmp_path / "net_0.pt", pasted(back))


def test_a_name_is_preferred_to_a_dict(tmp_path):
    path = write_checkpoint(birder_net("rope_vit_reg1_t14", size=(70, 70)), tmp_path)
    message = advice(path, "rope_vit_t14", (70, 70))
    assert pasted(message) == "rope_vit_reg1_t14"
    load(path, pasted(message), (70, 70))


def test_heads_that_qk_norm_shows(tmp_path):
    config = BASE | dict(qk_norm=True)
    path = write(tmp_path, config)
    message = advice(path, config | dict(num_heads=4))
    assert "num_heads 2 (not 4)" in message
    load(path, pasted(message))


def test_heads_that_do_not_show_are_left_to_the_user(tmp_path):
    message = advice(write(tmp_path, BASE), BASE | dict(hidden_dim=64))
    assert "num_heads=..." in message and "with the num_heads that it was trained with" in message
    with pytest.raises(ValueError, match="num_heads must be a positive integer, got Ellipsis"):
        resolve_arch(pasted(message))


@pytest.mark.parametrize(
    "override, says",
    [
        (dict(norm_layer_eps=1e-5), "norm_layer_eps=1e-05"),
        (CENTERED, "rope_style='centered_separate'"),
        (dict(pt_grid_size=[7, 4]), r"pt_grid_size=\(7, 4\)"),
        (dict(rope_temperature=10.0), "rope_temperature=10.0"),
    ],
)
def test_a_config_in_the_file_is_honoured_or_an_error_with_the_line_that_loads(
    override, says, tmp_path
):
    path = write(tmp_path, BASE | override, override)
    message = advice(path, BASE)
    assert re.search(says, message)
    load(path, pasted(message))
    load(path, BASE | override)


def test_a_config_in_the_file_of_training_or_of_the_head_contradicts_nothing(tmp_path):
    override = dict(drop_path_rate=0.3, dropout=0.1, out_indices=[0], attn_pool_num_heads=2)
    load(write(tmp_path, BASE | override, override), BASE)


def test_a_config_in_the_file_that_cannot_be_honoured_is_named(tmp_path):
    path = write(tmp_path, BASE)
    content = torch.load(path, weights_only=True)
    for config, says in (
        (dict(mlp_layer_type="SoftMoE_FFN", soft_moe_num_experts=4), "SoftMoE_FFN.*not supported"),
        (dict(rope_style="spiral"), "'spiral'"),
        (dict(new_switch=True), "'new_switch', which is not supported"),
    ):
        torch.save(content | {"config": config}, path)
        assert re.search(says, advice(path, BASE))


def test_image_sizes(tmp_path):
    path = write(tmp_path, BASE)
    assert "set pretrain_img_size=80" in advice(path, BASE, (224, 224))
    content = torch.load(path, weights_only=True)
    del content["signature"]
    torch.save(content, path)
    load(path, BASE)
    assert "set pretrain_img_size=80" in advice(path, BASE, (224, 224))
    special = BASE | dict(pos_embed_special_tokens=False)
    assert "set pos_embed_special_tokens=True" in advice(path, special)
    content["state"]["pos_embedding"] = torch.zeros(1, 28, 32)
    torch.save(content, path)
    assert "set pretrain_img_size to its own" in advice(path, BASE)


def test_a_signature_that_contradicts_the_weights(tmp_path):
    path = write(tmp_path, BASE)
    content = torch.load(path, weights_only=True)
    content["signature"]["inputs"][0]["data_shape"] = [1, 3, 160, 160]
    torch.save(content, path)
    assert "contradict the size that its signature gives" in advice(path, BASE, (160, 160))


def test_weights_that_every_network_has(tmp_path):
    path = write(tmp_path, BASE)
    content = torch.load(path, weights_only=True)
    del content["state"]["encoder.block.0.mlp.0.weight"]
    torch.save(content, path)
    assert "without blocks.0.mlp.fc1.weight" in advice(path, BASE)


def test_images_of_other_channels(tmp_path):
    path = write(tmp_path, BASE)
    content = torch.load(path, weights_only=True)
    content["state"]["conv_proj.weight"] = torch.zeros(32, 4, 16, 16)
    torch.save(content, path)
    assert "is for images of 4 channels, RoPEViT takes 3" in advice(path, BASE)


def test_arch_argument_is_source_that_gives_the_same_architecture():
    for arch in ("rope_vit_reg4_b14", "rope_i_vit_l14_nf_swiglu_c1", BASE, BASE | CENTERED):
        arch = resolve_arch(arch)
        assert resolve_arch(eval(arch_argument(arch))) == arch


@pytest.mark.parametrize(
    "key, value",
    [
        ("act_layer_type", "swish"),
        ("attn_pool_act_layer_type", "swish"),
        ("norm_layer_type", "BatchNorm"),
        ("mlp_layer_type", "MLP"),
        ("stem_type", "conv"),
        ("stem_norm_layer_type", "GroupNorm"),
        ("pos_embed_interpolation_mode", "nearest"),
        ("rope_style", "spiral"),
        ("rope_rot_type", "reversed"),
        ("rope_grid_indexing", "yx"),
        ("attn_pool_type", "mean"),
        ("patch_size", 0),
        ("num_layers", 2.5),
        ("num_heads", 3),
        ("num_heads", 16),
        ("num_reg_tokens", -1),
        ("pt_grid_size", 16),
        ("pt_grid_size", (16, 0)),
        ("norm_layer_eps", -1e-6),
        ("rope_temperature", 0.0),
        ("dropout", 1.5),
        ("drop_path_rate", -0.1),
    ],
)
def test_a_value_that_makes_no_sense_is_named(key, value):
    with pytest.raises(ValueError, match=key) as error:
        resolve_arch(BASE | {key: value})
    assert repr(value) in str(error.value)
