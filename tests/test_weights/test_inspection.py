"""Inspection of checkpoints: the names that fit, the description, the config lines."""

import dataclasses
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_normalization, check_strides
from ropevit_mmdet.weights.architectures import names_of, resolve_arch
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.inspection import (
    choose_archs,
    config_lines,
    describe,
    identify,
    pixel_stats,
    pretrain_size,
    summary,
)
from tests.oracle import SMALL, birder_net, fill, write_checkpoint
from tests.parity_cases import distinct_archs

pytestmark = pytest.mark.usefixtures("mmengine_instances")
ROOT = Path(__file__).parents[2]
CUT = dict(num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=48)


def written(directory, name, config=None, size=(70, 70)):
    pytest.importorskip("birder")
    return write_checkpoint(birder_net(name, config, size=size), directory, config=config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny"), "rope_vit_reg1_t14")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """What mmengine saves of a detector, as far as it is read here."""
    state = fill(RoPEViT("rope_vit_reg1_t14", pretrain_img_size=70)).state_dict()
    state = {f"backbone.{key}": value for key, value in state.items()}
    state["neck.convs.0.weight"] = torch.zeros(3)
    meta = dict(epoch=3, iter=1200, mmengine_version="0.10.7")
    meta["dataset_meta"] = dict(classes=("disc", "ring"), palette=[(0, 0, 0), (1, 1, 1)])
    path = tmp_path_factory.mktemp("detector") / "epoch_3.pth"
    torch.save(dict(state_dict=state, meta=meta), path)
    return path


@pytest.mark.parametrize("name", distinct_archs())
def test_named_archs(tmp_path, name):
    side = 5 * resolve_arch(name).patch_size
    fitting = read_checkpoint(written(tmp_path, name, CUT, (side, side))).named_archs()
    assert fitting[name].num_layers == 2 and fitting[name].hidden_dim == 64


def test_named_archs_with_overrides(tmp_path):
    path = written(tmp_path, "rope_vit_reg1_t14", dict(rope_temperature=50.0))
    (arch,) = read_checkpoint(path).named_archs().values()
    assert arch.rope_temperature == 50.0 and not names_of(arch)


def test_summary(tiny, detector):
    checkpoint = read_checkpoint(tiny)
    first, second = summary(checkpoint, checkpoint.state).splitlines()
    assert str(tiny) in first and "birder v0.8.4" in first
    assert f"{len(checkpoint.state)} tensors of rope_vit_reg1_t14" in first
    assert second.strip() == "ignored: classifier"
    cut = [key for key in checkpoint.state if not key.startswith(("blocks.11.", "norm."))]
    assert summary(checkpoint, cut).endswith("ignored: blocks.11, norm, classifier")
    checkpoint = read_checkpoint(detector)
    assert summary(checkpoint, checkpoint.state).endswith("ignored: nothing")
    plain = dataclasses.replace(checkpoint, meta=None, state=dict(checkpoint.state))
    del plain.state["reg_tokens"]
    assert "nothing in it shows a RoPE" in summary(plain, plain.state)


def test_describe(tiny, detector):
    checkpoint = read_checkpoint(tiny)
    checkpoint.state["pos_embed"] = checkpoint.state["pos_embed"] * torch.nan
    lines = [line for _, line in describe(checkpoint, choose_archs(checkpoint, None))]
    assert lines[1:5] == [
        "birder v0.8.4",
        "rope_vit_reg1_t14",
        "12 blocks of 192 channels",
        "patches of 14 pixels, 1 registers, 1 class token",
    ]
    assert "1 TENSORS CONTAIN NaN" in lines[5] and lines[7] == "70 x 70 pixels"
    assert lines[9] == "7: class_0, class_1, class_2, class_3, ..."
    lines = dict(describe(read_checkpoint(detector), {}))
    assert lines["backbone"].endswith("float32, all finite") and lines["classes"] == "2: disc, ring"
    assert lines["written by"] == "mmengine 0.10.7, 3 epochs, 1200 iters"


def saved(net, cfg, directory):
    """The checkpoint of a detector with a backbone and the text of a config."""
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg)), directory / "iter_1.pth")
    return read_checkpoint(directory / "iter_1.pth")


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize("kind", ["plain", "frozen", "semi-supervised"])
def test_a_detector_is_what_its_config_states(kind, rgb, tmp_path):
    """Weights show neither RoPE and normalization nor a pretraining that was not square."""
    arch = dict(SMALL, num_layers=2, rope_temperature=50.0)
    sizes = dict(pretrain_img_size=(56, 84), patch_size=16)
    backbone = dict(type="RoPEViT", arch=arch, **sizes)
    if kind == "frozen":
        backbone = dict(type="FrozenBackbone", backbone=backbone)
    stats = dict(mean=[51.0, 102.0, 153.0], std=[25.5] * 3)
    model = dict(backbone=backbone, data_preprocessor=dict(stats, bgr_to_rgb=rgb))
    model = dict(detector=model) if kind == "semi-supervised" else model
    checkpoint = saved(RoPEViT(arch, **sizes), f"model = {model}", tmp_path)
    _, stated = identify(checkpoint)
    assert (stated.rope_temperature, stated.patch_size) == (50.0, 16)
    assert pretrain_size(checkpoint, stated) == (64, 96)  # 4 x 6 patches
    assert pixel_stats(checkpoint) == (stats if rgb else {})  # of BGR: in another order


@pytest.mark.parametrize("cfg", ["import os", "model = None", "model = dict(backbone=None)", None])
def test_a_detector_without_a_readable_config_states_nothing(cfg, tmp_path):
    checkpoint = saved(RoPEViT(SMALL), cfg, tmp_path)
    assert checkpoint.stated is None and not pixel_stats(checkpoint)


def test_choose_archs_by_name(tmp_path):
    checkpoint = read_checkpoint(written(tmp_path, "rope_a_vit_s16", CUT, (80, 80)))
    assert list(choose_archs(checkpoint, None)) == ["rope_vit_t16", "rope_a_vit_s16"]
    assert list(choose_archs(checkpoint, "rope_a_vit_s16")) == ["rope_a_vit_s16"]
    with pytest.raises(ValueError, match="it has another architecture"):
        choose_archs(checkpoint, "rope_vit_t14")


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("rope_vit_reg1_t14", None, (70, 70)),
        ("rope_vit_t16", dict(rope_temperature=50.0), (96, 96)),
        ("rope_vit_reg8_so150m_p14_swiglu_rms_aps", CUT, (84, 56)),
    ],
)
def test_config_lines_build_a_detector_that_loads(tmp_path, name, config, size):
    path = written(tmp_path, name, config, size)
    checkpoint = read_checkpoint(path)
    arch = choose_archs(checkpoint, name)[name]
    lines = config_lines(checkpoint, arch, str(path))
    pasted = tmp_path / "pasted.py"
    pasted.write_text(f'_base_ = "{ROOT}/configs/ropevit_maskrcnn.py"\n{lines}\n')
    config = Config.fromfile(pasted)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.backbone.init_weights()
    check_strides(model)
    check_normalization(model)
    feature_maps = model.backbone(torch.zeros(1, 3, 8 * arch.patch_size, 8 * arch.patch_size))
    assert model.neck(feature_maps)[2].shape[-2:] == (8, 8)


def test_identify_without_a_name(tmp_path):
    pytest.importorskip("birder")
    path = write_checkpoint(birder_net("rope_vit_reg4_b14", SMALL, size=(70, 70)), tmp_path)
    with pytest.raises(ValueError, match=r"no architecture .*set arch=dict\(.*hidden_dim=32"):
        identify(read_checkpoint(path))
