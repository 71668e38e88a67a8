"""Layer decay: the rate and weight decay of every parameter, against a list written by hand."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import (
    RoPEViTLayerDecay,
    group_table,
    layer_of,
    parameter_counts,
)
from tests.oracle import SMALL
from tests.test_configs import CONFIGS, load

LR, DECAY, RATE = 1e-3, 0.1, 0.7
BLOCK = {  # weight decays?
    "norm1.weight": False,
    "norm1.bias": False,
    "attn.qkv.weight": True,
    "attn.qkv.bias": False,
    "attn.proj.weight": True,
    "attn.proj.bias": False,
    "ls1.gamma": False,
    "norm2.weight": False,
    "norm2.bias": False,
    "mlp.fc1.weight": True,
    "mlp.fc1.bias": False,
    "mlp.fc2.weight": True,
    "mlp.fc2.bias": False,
    "ls2.gamma": False,
}
EMBEDDING = {
    "pos_embed": False,
    "cls_token": False,
    "reg_tokens": False,
    "patch_embed.proj.weight": True,
    "patch_embed.proj.bias": False,
}


def wrapper_cfg(rate=RATE):
    return dict(
        type="OptimWrapper",
        constructor="RoPEViTLayerDecay",
        optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(layer_decay_rate=rate),
    )


def settings(model, rate=RATE) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, by name."""
    init_default_scope("mmdet")
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, wrapper_cfg(rate)).optimizer
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


def test_the_rule_is_that_of_detectron2():
    """Published: rate ** (n + 1 - layer); layer 0 the embedding, i + 1 block i, n + 1 the rest."""
    actual = settings(RoPEViT("rope_vit_t14"))
    for name, (rate, _) in actual.items():
        layer = 13
        if "pos_embed" in name or "patch_embed" in name or "_token" in name:
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        assert rate == pytest.approx(LR * RATE ** (13 - layer)), name


def test_depth_is_that_of_the_blocks_that_are_built():
    assert settings(RoPEViT(SMALL, out_indices=1))["blocks.1.norm1.weight"][0] == LR * RATE


def test_frozen_parameters_are_left_out():
    actual = settings(detector(frozen_stages=2))
    assert not any(name.startswith("backbone.blocks.1.") for name in actual)
    assert actual["backbone.blocks.2.attn.qkv.weight"][0] == pytest.approx(LR * 0.7**2)


def test_a_real_detector_has_every_parameter_once():
    model = MODELS.build(load(CONFIGS / "ropevit_maskrcnn.py").model)
    assert set(settings(model)) == {name for name, _ in model.named_parameters()}


def test_weight_decay_that_is_not_given_is_the_optimizers_own():
    config = wrapper_cfg()
    del config["optimizer"]["weight_decay"]
    init_default_scope("mmdet")
    optimizer = build_optim_wrapper(detector(), config).optimizer
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}


def test_a_rate_of_one_is_no_decay():
    assert {rate for rate, _ in settings(detector(), rate=1).values()} == {LR}


def test_every_bias_is_free_of_weight_decay():
    model = detector()
    model["head"] = torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
    found = {name: decay for name, (_, decay) in settings(model).items() if "head" in name}
    free = {"head.in_proj_bias", "head.bias_k", "head.bias_v", "head.out_proj.bias"}
    assert {name for name, decay in found.items() if decay == 0} == free
    assert len(found) == 6


def test_errors_name_their_cause():
    with pytest.raises(ValueError, match="no RoPEViT in Linear"):
        settings(torch.nn.Linear(2, 2))
    for rate in (0, 1.1, None, "0.7"):
        with pytest.raises(ValueError, match="layer_decay_rate"):
            settings(detector(), rate=rate)
    with pytest.raises(ValueError, match="num_layers"):
        RoPEViTLayerDecay(
            dict(optimizer={}), paramwise_cfg=dict(layer_decay_rate=0.7, num_layers=12)
        )
    with pytest.raises(ValueError, match=r"optimizer=dict\(lr="):
        RoPEViTLayerDecay(dict(optimizer={}), paramwise_cfg=dict(layer_decay_rate=0.7))
    model = detector()
    model["backbone"].adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'adapter\.weight'.*no layer"):
        settings(model)
    with pytest.raises(ValueError, match="no layer"):
        layer_of("blocks.12.norm1.weight", depth=12)


def test_the_table_counts_every_parameter():
    model = detector()
    groups = build_optim_wrapper(model, wrapper_cfg()).optimizer.param_groups
    lines = group_table(groups, parameter_counts(model, groups)).splitlines()
    counted = sum(int(line.split()[-1].replace(",", "")) for line in lines[1:])
    assert counted == sum(p.numel() for p in model.parameters())
    assert len(lines) == 1 + 2 * (1 + 4 + 1)  # layers 0 to 5, with and without weight decay
