"""Checkpoints of complete detectors: what of them fits, and their classes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import DetTTAModel
from mmengine.runner import load_checkpoint
from torch import nn
from torch.testing import assert_close

from ropevit_mmdet import FrozenBackbone, RoPEViTChecks
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.detector_checkpoint import (
    check_classes,
    check_start,
    fitted,
    read_detector_checkpoint,
    skip_init,
)
from tests.exportable_models import SMALL_ARCH, WINDOWED, small_detector
from tests.oracle import SMALL, birder_net

WRAPPERS = {
    "DDP": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled in DDP": lambda key: f"module._orig_mod.{key}",
    "Lightning": lambda key: f"model.{key}",
    "another attribute": lambda key: f"net.detector.{key}",
    "compiled backbone": lambda key: key.replace("backbone.", "backbone._orig_mod."),
    "FSDP": lambda key: key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
}
RESNET = {"conv1.weight": torch.ones(2, 3), "layer1.0.bn1.weight": torch.ones(2)}


@pytest.fixture(scope="module")
def detector():
    return small_detector()


@pytest.fixture
def other(detector):
    """The same detector with other weights."""
    model = copy.deepcopy(detector)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    return model


@pytest.mark.parametrize("name", WRAPPERS)
def test_prefixes_of_wrappers_are_removed(name, detector, other, tmp_path):
    expected = detector.state_dict()
    wrapped = {WRAPPERS[name](key): value for key, value in expected.items()}
    if name == "DDP":  # as torch's AveragedModel saves it
        wrapped["n_averaged"] = torch.tensor(3)
    torch.save(dict(state_dict=wrapped), tmp_path / "a.pth")
    torch.save(wrapped, tmp_path / "b.pth")
    for path in tmp_path.iterdir():
        assert_close(read_detector_checkpoint(path)["state_dict"], expected, rtol=0, atol=0)
        check_start(other, dict(load_from=str(path)))
        load_checkpoint(other, str(path))  # of mmengine's runners, init_detector, DetInferencer
        assert_close(other.state_dict(), expected, rtol=0, atol=0)


def test_prefixes_of_the_model_itself_stay(detector, tmp_path):
    wrapper = nn.ModuleDict(dict(model=detector))
    torch.save(wrapper.state_dict(), tmp_path / "a.pth")
    target = copy.deepcopy(wrapper)
    nn.init.zeros_(target["model"].backbone.cls_token)
    load_checkpoint(target, str(tmp_path / "a.pth"))
    assert_close(target.state_dict(), wrapper.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["model", "teacher", "state_dict_ema", "ema.module"])
def test_weights_under_another_key(key, detector, tmp_path):
    content = detector.state_dict()
    for part in reversed(key.split(".")):
        content = {part: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}
    torch.save(content, tmp_path / "a.pth")
    for use in (
        read_detector_checkpoint,
        lambda path: check_start(detector, dict(load_from=path)),
        lambda path: load_checkpoint(detector, path),
    ):
        with pytest.raises(UserError, match=f"keeps its weights under '{key}': "):
            use(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("part", ["all", "neck only", "another width"])
def test_nothing_of_the_backbone_fits(part, detector, tmp_path):
    state = detector.state_dict()
    if part == "all":
        state = RESNET
    elif part == "neck only":
        state = {key: value for key, value in state.items() if key.startswith("neck.")} | RESNET
    else:
        state = {key: value.repeat_interleave(2) for key, value in state.items()}
    torch.save(dict(state_dict=state), tmp_path / "a.pth")
    words = "differ in shape: backbone" if part == "another width" else "not in it: backbone"
    with pytest.raises(UserError, match=rf"a\.pth does not fit the model: .*{words}") as caught:
        check_start(detector, dict(load_from=str(tmp_path / "a.pth")))
    assert "neck" not in str(caught.value)
    with pytest.raises(UserError, match=f"does not fit the model: .*{words}"):
        load_checkpoint(detector, str(tmp_path / "a.pth"))
    load_checkpoint(nn.Linear(2, 2), str(tmp_path / "a.pth"))  # as mmengine does


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod."])
def test_weights_reach_a_model_in_a_wrapper(prefix, detector, other, tmp_path):
    """As --tta has one."""
    wrapper = DetTTAModel(module=other)
    weights = {prefix + key: value for key, value in detector.state_dict().items()}
    torch.save(dict(state_dict=weights), tmp_path / "a.pth")
    load_checkpoint(wrapper, str(tmp_path / "a.pth"))
    assert_close(other.state_dict(), detector.state_dict(), rtol=0, atol=0)


def test_weights_of_another_shape_do_not_stay_random(detector, tmp_path):
    weights = detector.state_dict()
    weights["backbone.patch_embed.proj.weight"] = torch.zeros(32, 3, 16, 16)
    torch.save(dict(state_dict=weights), tmp_path / "a.pth")
    for load in (load_checkpoint, lambda model, path: check_start(model, dict(load_from=path))):
        with pytest.raises(UserError, match="backbone.patch_embed.proj.weight"):
            load(copy.deepcopy(detector), str(tmp_path / "a.pth"))


def test_a_detector_may_have_the_backbone_of_another_library(tmp_path):
    pytest.importorskip("birder")
    weights = birder_net(config=SMALL).state_dict()
    weights = {f"backbone.{key}": value for key, value in weights.items()}
    weights["neck.a.weight"] = torch.zeros(2)
    torch.save(dict(state_dict=weights), tmp_path / "a.pth")
    read = read_detector_checkpoint(tmp_path / "a.pth")["state_dict"]
    assert read.keys() == weights.keys()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("missing", ["cls_token", "bbox_head"])
def test_pretraining_file_is_read_only_if_it_is_used(missing, frozen, detector, tmp_path):
    model, path = copy.deepcopy(detector), tmp_path / "iter_2.pth"
    if frozen:
        settings = dict(type="RoPEViT", arch=SMALL_ARCH | dict(num_layers=2), **WINDOWED)
        model.backbone = FrozenBackbone(settings)
    init_cfg = dict(type="Pretrained", checkpoint="gone.pt")
    getattr(model.backbone, "backbone", model.backbone).init_cfg = init_cfg
    torch.save({k: v for k, v in model.state_dict().items() if missing not in k}, path)
    runner = dict(model=model, _load_from=str(path), _resume=False, _has_loaded=False)
    RoPEViTChecks().before_run(SimpleNamespace(**runner))
    if missing == "bbox_head":
        model.init_weights()
        return
    with pytest.raises(UserError, match=r"not found: gone\.pt"):
        model.init_weights()


def test_skip_init_of_a_config():
    backbone = dict(type="RoPEViT", init_cfg=dict(type="Pretrained", checkpoint="gone.pt"))
    config = dict(backbone=dict(type="FrozenBackbone", backbone=backbone))
    skip_init(config)
    assert config["backbone"].pop("backbone") == dict(type="RoPEViT", init_cfg=None)
    assert config == dict(backbone=dict(type="FrozenBackbone"))


@pytest.mark.parametrize("saved", [(), ("a", "b"), ["a", "b"], ("a", "b", "c")])
def test_check_classes_equal_or_not_comparable(saved):
    assert check_classes(saved, ("a", "b"), "x.pth") is None


def test_weights_fit_a_model_whose_names_share_a_prefix():
    """A checkpoint is read without it; what does not fit is an error."""
    model = nn.Module()
    model.net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    plain = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    model.load_state_dict(fitted(model, plain, "a.pth"))
    assert list(fitted(model, plain, "a.pth")) == list(model.state_dict())
    with pytest.raises(UserError, match="checkpoint a.pth does not fit the model"):
        fitted(model, {**plain, "1.bias": torch.zeros(2)}, "a.pth")
