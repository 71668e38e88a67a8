"""A checkpoint that contradicts the arguments: the message, and that its line can be pasted."""

import re

import pytest
import torch

pytest.importorskip("birder")

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.weights.architectures import resolve_arch
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
    ("switch", "words"),
    [
        ("hmlp", "stem_type hmlp"),
        ("activation prelu", "prelu True"),
        ("NormFormer, RMSNorm", "norm_layer_type RMSNorm"),
        ("norm after pool", "norm_after_pool True"),
        ("pre-norm", "pre_norm True"),
        ("position embedding of patches only", r"pos_embed_special_tokens False \(not True\)"),
        ("no position embedding", "abs_pos_embed False"),
        ("QK-norm", "qk_norm True"),
        ("attention norm", "attn_norm True"),
        ("LayerScale", "layer_scale True"),
        ("no special tokens", "class_token False"),
        ("odd mlp_dim, SwiGLU", "mlp_dim 37"),
    ],
)
def test_settings_that_weights_show(switch, words, tmp_path):
    config = BASE | SWITCHES[switch]
    path = write(tmp_path, config)
    load(path, config)
    message = advice(path, BASE)
    assert re.search(words, message)
    load(path, pasted(message))
    back = advice(write(tmp_path, BASE), config)  # the other way round
    load(tmp_path / "net_0.pt", pasted(back))


def test_num_heads_without_qk_norm_is_left_to_the_user(tmp_path):
    message = advice(write(tmp_path, BASE), BASE | dict(hidden_dim=64))
    assert "num_heads=..." in message
    with pytest.raises(ValueError, match="num_heads must be a positive integer, got Ellipsis"):
        resolve_arch(pasted(message))


@pytest.mark.parametrize(
    "override", [dict(norm_layer_eps=1e-5), CENTERED, dict(pt_grid_size=[7, 4])], ids=str
)
def test_config_in_the_file(override, tmp_path):
    path = write(tmp_path, BASE | override, override)
    load(path, pasted(advice(path, BASE)))
    load(path, BASE | override)


def test_config_in_the_file_of_training_or_head(tmp_path):
    override = dict(drop_path_rate=0.3, dropout=0.1, out_indices=[0], attn_pool_num_heads=2)
    load(write(tmp_path, BASE | override, override), BASE)


def test_config_in_the_file_that_is_not_supported(tmp_path):
    path = write(tmp_path, BASE)
    content = torch.load(path, weights_only=True)
    for config, words in (
        (dict(mlp_layer_type="SoftMoE_FFN", soft_moe_num_experts=4), "not supported.*SoftMoE"),
        (dict(rope_style="spiral"), "'spiral'"),
        (dict(new_switch=True), "not supported: .*'new_switch'"),
    ):
        torch.save(content | {"config": config}, path)
        assert re.search(words, advice(path, BASE))


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
    assert "set pretrain_img_size to the size it was trained at" in advice(path, BASE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_layer_type", "other"),
        ("rope_style", "other"),
        ("stem_norm_layer_type", "BatchNorm2d"),
        ("patch_size", 0),
        ("num_layers", 2.5),
        ("num_heads", 3),
        ("num_heads", 16),
        ("pt_grid_size", 16),
        ("pt_grid_size", (16, 0)),
    ],
)
def test_resolve_arch_invalid_value(key, value):
    with pytest.raises(ValueError, match=key) as error:
        resolve_arch(BASE | {key: value})
    assert repr(value) in str(error.value)
