"""The block calls its modules, so that hooks, adapters, quantization and checkpointing work."""

import copy
from contextlib import contextmanager

import pytest
import torch
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ropevit_mmdet import RoPEViT
from tests.oracle import SMALL, fill, relative_error, seeded_images
from tests.peft_substitute import BaseTunerLayer, LoraConfig, inject_adapter_in_model

GATED = SMALL | dict(mlp_layer_type="SwiGLU_FFN", layer_scale_init_value=0.1, qk_norm=True)
TWICE = ("drop_path", "mlp.drop")
ATTENTION = ("attn", "attn.qkv", "attn.q_norm", "attn.norm", "attn.proj", "attn.proj_drop")
PARTS = ("norm1", *ATTENTION, "ls1", "drop_path", "norm2", "mlp", "mlp.act", "mlp.drop", "mlp.fc2")
LINEAR = {"FFN": ("qkv", "proj", "fc1", "fc2"), "SwiGLU_FFN": ("qkv", "proj", "fc1_g", "fc1_x")}


def small(arch=SMALL, window_size=4) -> RoPEViT:
    windows = {} if window_size is None else dict(window_size=window_size, global_attn_indices=(2,))
    return fill(RoPEViT(arch, **windows)).eval()


@pytest.fixture(scope="module")
def images():
    return seeded_images((2, 3, 392, 448)).float()  # several pieces, in windows or not


@contextmanager
def listening(model, part, kind):
    """The first dimensions of what a part of the first block takes, call by call."""
    module, calls = model.blocks[0].get_submodule(part), []

    def hook(called, args, *rest):
        if called is module:
            calls.append(tuple(args[0].shape[:2]))

    register = register_module_forward_hook
    if kind != "global":
        register = getattr(module, f"register_forward_{kind}")
    handle = register(hook)
    yield calls
    handle.remove()


@pytest.mark.parametrize("window_size", [None, 4])
@pytest.mark.parametrize("arch", [SMALL, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["hook", "pre_hook", "global"])
def test_a_hook_gets_all_windows_in_one_call(kind, arch, window_size, images):
    model = small(arch, window_size)
    model.blocks = model.blocks[:1]
    model.out_indices = (0,)
    with torch.no_grad():
        expected = model(images)[0]
        for part in PARTS:
            with listening(model, part, kind) as calls:
                actual = model(images)[0]
            assert len(calls) == (2 if part in TWICE else 1), part
            if part != "attn.q_norm":
                windows = 1 if window_size is None else 7 * 8
                assert set(calls) == {(2, 28 * 32 + 5 * windows)}, part
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", [SMALL, GATED], ids=["plain", "gated"])
def test_adapters_equal_their_merged_twin(arch, images):
    model = small(arch)
    plain = copy.deepcopy(model)
    layers = rf"blocks\..*\.({'|'.join(LINEAR[model.arch.mlp_layer_type])})"
    inject_adapter_in_model(LoraConfig(2, 2, layers), model)
    with torch.no_grad():
        before = plain(images)[0]
        for name, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                torch.nn.init.uniform_(layer.lora_B, -0.5, 0.5)
                merged = copy.deepcopy(layer)
                merged.merge()
                plain.set_submodule(name, merged.get_base_layer())
        actual, expected = model(images)[0], plain(images)[0]
    assert relative_error(actual, expected) < 1e-4 < 0.1 < relative_error(actual, before)


@pytest.mark.filterwarnings("ignore")  # announces torchao
def test_dynamic_quantization_finds_every_linear_layer(images):
    model = small()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(type(module) is kind for module in quantized.modules()) == 4 * len(model.blocks)
    with torch.no_grad():
        actual = quantized(images)[0]
        assert 1e-4 < relative_error(actual, model(images)[0]) < 0.2


@pytest.mark.filterwarnings("ignore:.*use_reentrant")
@pytest.mark.parametrize("names", [["blocks.0", "blocks.3"], ["blocks.1.attn", "blocks.2.mlp"]])
def test_activation_checkpointing_of_mmengine_changes_no_gradient(names):
    images, results = seeded_images((2, 3, 98, 84)), []
    for chosen in ([], names):
        model = small(dict(SMALL, drop_path_rate=0.3)).double().train()
        turn_on_activation_checkpointing(model, chosen)
        torch.manual_seed(0)
        model(images)[0].square().mean().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_a_drop_path_that_is_replaced_works(images):
    model = small()
    with torch.no_grad():
        expected = model(images)[0]
        for block in model.blocks:
            block.drop_path = nn.Identity()
        torch.testing.assert_close(model(images)[0], expected, rtol=1e-4, atol=1e-4)
