"""Checkpoints are loaded strictly, both ways; an error names the line to paste."""

import argparse

import pytest
import torch
from mmengine.model import PretrainedInit
from safetensors.torch import save_file
from torch.testing import assert_close

from ropevit_mmdet import FrozenBackbone, RoPEViT
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import arch_names, names_of, resolve_arch
from ropevit_mmdet.weights.checkpoint import load_into, read_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.settings import contradictions
from tests.oracle import RGB_STATS, SMALL, birder_net, fill, write_checkpoint


@pytest.fixture(scope="module")
def birder_file(tmp_path_factory):
    pytest.importorskip("birder")
    return write_checkpoint(birder_net(config=SMALL), tmp_path_factory.mktemp("birder"))


def load(path, arch=SMALL, init=None, **arguments) -> RoPEViT:
    init_cfg = dict(type="Pretrained", checkpoint=str(path)) | (init or {})
    model = RoPEViT(arch, **arguments, init_cfg=init_cfg)
    model.init_weights()
    return model


def edited(path, tmp_path, **changes):
    """A copy of a birder file with keys of its state set, or removed where the value is None."""
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        if value is None:
            del content["state"][key]
        else:
            content["state"][key] = value
    torch.save(content, tmp_path / "edited.pt")
    return tmp_path / "edited.pt"


def test_read_checkpoint_birder(birder_file):
    checkpoint = read_checkpoint(birder_file)
    assert checkpoint.origin == "birder" and checkpoint.version == "v0.8.4"
    assert checkpoint.img_size == (224, 224)
    assert checkpoint.rgb_stats == RGB_STATS
    assert len(checkpoint.class_to_idx) == 7
    assert set(checkpoint.head) == {"classifier.weight", "classifier.bias"}
    assert not contradictions(resolve_arch(SMALL), checkpoint.settings())


def test_load_unexpected_or_missing_key(birder_file, tmp_path):
    with pytest.raises(ValueError, match=r"not in the model: blocks\.1\.attn\.extra"):
        load(edited(birder_file, tmp_path, **{"encoder.block.1.attn.extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"not in it: blocks\.2\.norm2\.weight"):
        load(edited(birder_file, tmp_path, **{"encoder.block.2.norm2.weight": None}))


def test_load_into_copies_nothing_if_a_shape_differs():
    model = fill(RoPEViT(SMALL))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items()}
    state["norm.weight"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"norm\.weight is \(5,\), the model has \(32,\)"):
        load_into(model, state, "the file")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_load_another_architecture(birder_file, tmp_path):
    with pytest.raises(ValueError, match=r"num_layers 4 \(not 6\).*arch=dict\(.*num_layers=4"):
        load(birder_file, dict(SMALL, num_layers=6))
    tiny = write_checkpoint(birder_net("rope_vit_reg1_t14"), tmp_path, "tiny")
    with pytest.raises(ValueError, match="set arch='rope_vit_reg1_t14'"):
        load(tiny, "rope_vit_t14")


def test_load_values_that_are_not_finite(birder_file, tmp_path):
    weights = torch.load(birder_file, weights_only=True)["state"]["encoder.block.1.attn.qkv.weight"]
    weights[3, 4] = float("nan")
    path = edited(birder_file, tmp_path, **{"encoder.block.1.attn.qkv.weight": weights})
    model = RoPEViT(SMALL)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"edited\.pt contains NaN or infinite values in 1 of \d+"):
        model.load_pretrained(str(path))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.save(dict(state_dict={"a": weights, "b": torch.tensor(3)}), tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="in 1 of 2 tensors: a; the run diverged"):
        read_detector_checkpoint(tmp_path / "nan.pth")


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.backbone.", ""])
def test_load_mmengine(tmp_path, prefix):
    trained = fill(RoPEViT(SMALL))
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    if prefix:
        state["neck.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "epoch_1.pth")
    model = load(tmp_path / "epoch_1.pth", window_size=4)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())


WRAPPERS = ["module.", "net._orig_mod.", "net.", "module._orig_mod.", "student.backbone."]
OTHERS = {"criterion.weight": torch.ones(2), "criterion._extra_state": None, "steps": 3}


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_load_without_the_prefixes_of_wrappers(birder_file, prefix, tmp_path):
    expected = load(birder_file).state_dict()
    content = torch.load(birder_file, weights_only=True)
    content["args"] = argparse.Namespace(lr=0.1)
    content["state"] = {prefix + key: value for key, value in content["state"].items()}
    averaged = {prefix + key: value for key, value in expected.items()}
    averaged["n_averaged"] = torch.tensor(3)
    larger = [dict(state=content["state"] | OTHERS), dict(state_dict=averaged | OTHERS)]
    for number, saved in enumerate([content, averaged, dict(state_dict=averaged), *larger]):
        torch.save(saved, tmp_path / f"{number}.pt")
    save_file(content["state"], tmp_path / "5.safetensors")
    for path in tmp_path.iterdir():
        assert_close(load(path).state_dict(), expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """A file with the RoPE ViTs of a student and, nested or not, of a teacher; and the teacher."""
    path, teacher = tmp_path_factory.mktemp("of two"), fill(RoPEViT(SMALL)).state_dict()
    student = {f"student.backbone.{key}": value + 1 for key, value in teacher.items()}
    named = {f"teacher.backbone.{key}": value for key, value in teacher.items()}
    torch.save(dict(state_dict=student | named), path / "flat.pth")
    nested = {f"_orig_mod.backbone.{key}": value for key, value in teacher.items()}
    torch.save(dict(student=student, teacher=nested, epoch=3), path / "nested.pth")
    return path, teacher


@pytest.mark.parametrize(
    "entry",
    [
        dict(prefix="teacher.backbone."),
        dict(prefix="teacher.backbone", map_location="cpu"),
        dict(type=PretrainedInit, prefix="teacher.backbone"),
        dict(type="mmengine.Pretrained", prefix="b", revise_keys=[(r"^teacher\.backbone", "b")]),
    ],
)
def test_init_cfg_of_every_form(of_two, entry):
    path, teacher = of_two
    init_cfg = dict(type="Pretrained", checkpoint=str(path / "flat.pth")) | entry
    constant = dict(type="Constant", layer="Linear", val=7)
    frozen = FrozenBackbone(dict(type="RoPEViT", arch=SMALL, init_cfg=[init_cfg, constant]))
    for model in (RoPEViT(SMALL, init_cfg=init_cfg), RoPEViT(SMALL, init_cfg=[init_cfg]), frozen):
        model.init_weights()
        assert_close(model.state_dict(), teacher, rtol=0, atol=0)


def test_init_cfg_prefix_of_a_nested_dict(of_two):
    path, teacher = of_two
    for prefix in ("teacher.", "teacher._orig_mod.backbone"):
        model = load(path / "nested.pth", init=dict(prefix=prefix))
        assert_close(model.state_dict(), teacher, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "init", "words"),
    [
        ("flat", dict(prefix="ema."), r"prefix='ema\.'.*student\., student\.backbone\., teacher\."),
        ("flat", dict(), r"prefix='student\.backbone\.' or 'teacher\.backbone\.'"),
        ("nested", dict(), r"under 'student' and 'teacher'.*prefix='student\.'"),
        ("nested", dict(prefix="epoch"), r"no weights below prefix='epoch\.'"),
        ("flat", dict(strict=False), "expected the keys type, checkpoint"),
    ],
)
def test_init_cfg_that_chooses_no_weights(of_two, name, init, words):
    with pytest.raises(UserError, match=words):
        load(of_two[0] / f"{name}.pth", init=init)


def test_load_resampled_patches_keep_the_pretraining_grid(birder_file):
    model = load(birder_file, patch_size=16)
    assert model.pretrain_grid == (16, 16) and model.pos_embed.shape[1] == 256 + 5
    assert model(torch.zeros(1, 3, 256, 320))[0].shape == (1, 32, 16, 20)


OTHER_NETWORKS = ("naflex_", "rope_flexivit_")  # subclasses with another forward


def test_arch_names_are_birders():
    registry = pytest.importorskip("birder.model_registry").registry
    from birder.net.rope_vit import RoPE_ViT

    entries = {
        name: net.config
        for name, net in registry.all_nets.items()
        if issubclass(net, RoPE_ViT) and net.config and not name.startswith(OTHER_NETWORKS)
    }
    soft_moe = {name for name in entries if "soft_moe" in name}
    assert set(arch_names()) == set(entries) - soft_moe
    for name in arch_names():
        assert resolve_arch(name) == resolve_arch(dict(entries[name]))
        assert name in names_of(resolve_arch(name))
    for alias, name in registry.name_aliases.items():
        if name in entries:
            assert resolve_arch(alias) == resolve_arch(name)
