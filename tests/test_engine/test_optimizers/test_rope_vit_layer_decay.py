"""Layer decay: the rate and weight decay of every parameter, against a list written by hand."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import RoPEViTLayerDecay
from tests.oracle import SMALL

LR, DECAY, RATE = 1e-3, 0.1, 0.7
BLOCK = {  # has weight decay?
    "norm1.weight": False, "norm1.bias": False, "norm2.weight": False, "norm2.bias": False,
    "attn.qkv.weight": True, "attn.qkv.bias": False,
    "attn.proj.weight": True, "attn.proj.bias": False,
    "mlp.fc1.weight": True, "mlp.fc1.bias": False,
    "mlp.fc2.weight": True, "mlp.fc2.bias": False,
    "ls1.gamma": False, "ls2.gamma": False,
}  # fmt: skip
EMBEDDING = {
    "pos_embed": False, "cls_token": False, "reg_tokens": False,
    "patch_embed.proj.weight": True, "patch_embed.proj.bias": False,
}  # fmt: skip


def wrapper_cfg(rate=RATE, **changes):
    cfg = dict(
        type="OptimWrapper",
        constructor="RoPEViTLayerDecay",
        optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(layer_decay_rate=rate),
    )
    return cfg | changes


def settings(model, **changes) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, by name."""
    init_default_scope("mmdet")
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, wrapper_cfg(**changes)).optimizer
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def detector(**backbone):
    """A backbone of four blocks with LayerScale, and a head with one norm and one linear layer."""
    head = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 3))
    arch = SMALL | dict(layer_scale_init_value=1e-5)
    return torch.nn.ModuleDict(dict(backbone=RoPEViT(arch, **backbone), head=head))


def test_every_parameter_against_the_list():
    expected = {
        f"backbone.{name}": (LR * 0.7**5, DECAY * decays) for name, decays in EMBEDDING.items()
    }
    for i, power in enumerate((4, 3, 2, 1)):
        for name, decays in BLOCK.items():
            expected[f"backbone.blocks.{i}.{name}"] = (LR * 0.7**power, DECAY * decays)
    for name in ("backbone.norm.weight", "backbone.norm.bias", "head.0.weight", "head.0.bias"):
        expected[name] = (LR, 0.0)
    expected |= {"head.1.weight": (LR, DECAY), "head.1.bias": (LR, 0.0)}
    actual = settings(detector())
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name] == pytest.approx(values), name


def test_groups_without_weight_decay_come_first():
    """An optimizer's state is resumed by position: the order of saved runs must not change."""
    groups = RoPEViTLayerDecay(wrapper_cfg(), wrapper_cfg()["paramwise_cfg"]).param_groups(
        detector()
    )
    order = [(group["layer"], "weight_decay" not in group) for group in groups]
    assert order == [(layer, decays) for layer in range(6) for decays in (False, True)]


def test_frozen_parameters_are_skipped():
    actual = settings(detector(frozen_stages=2))
    assert not any(name.startswith("backbone.blocks.1.") for name in actual)
    assert actual["backbone.blocks.2.attn.qkv.weight"][0] == pytest.approx(LR * 0.7**2)


def test_custom_keys_are_for_parameters_outside_the_backbone():
    """The longest key decides, as in mmengine; biases and norms keep no weight decay."""
    keys = {
        "head": dict(lr_mult=0.1),
        "head.1": dict(lr_mult=0.5, decay_mult=2.0),
        "blocks": dict(lr_mult=0.0),
    }
    paramwise_cfg = dict(layer_decay_rate=RATE, custom_keys=keys)
    actual = settings(detector(), paramwise_cfg=paramwise_cfg)
    assert actual["head.0.weight"] == pytest.approx((LR * 0.1, 0.0))
    assert actual["head.1.weight"] == pytest.approx((LR * 0.5, DECAY * 2))
    assert actual["head.1.bias"] == pytest.approx((LR * 0.5, 0.0))
    ours = {name: value for name, value in actual.items() if name.startswith("backbone.")}
    assert ours == {n: v for n, v in settings(detector()).items() if n.startswith("backbone.")}
    assert len(actual) == len(settings(detector()))


def test_biases_of_attention_have_no_weight_decay():
    model = detector()
    model["head"] = torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
    decays = {name: decay for name, (_, decay) in settings(model).items() if "head" in name}
    assert {name for name, decay in decays.items() if decay == 0} == {
        "head.in_proj_bias", "head.bias_k", "head.bias_v", "head.out_proj.bias"
    }  # fmt: skip
    assert len(decays) == 6


def test_errors_name_their_cause():
    with pytest.raises(ValueError, match="no RoPEViT in Linear"):
        settings(torch.nn.Linear(2, 2))
    for changes in (dict(rate=1.1), dict(optimizer={}), dict(paramwise_cfg=dict(num_layers=12))):
        with pytest.raises(ValueError, match=r"needs optimizer=dict\(lr=.*layer_decay_rate"):
            RoPEViTLayerDecay(wrapper_cfg(**changes), wrapper_cfg(**changes)["paramwise_cfg"])
    model = detector()
    model["backbone"].adapter = torch.nn.Linear(2, 2)
    with pytest.raises(KeyError, match="adapter"):
        settings(model)
