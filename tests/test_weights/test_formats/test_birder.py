"""birder's `.pt` and `.safetensors` are read to the same."""

import dataclasses

import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from tests.oracle import (
    SMALL,
    birder_map,
    birder_net,
    fill,
    relative_error,
    seeded_images,
    write_checkpoint,
    write_safetensors,
)

ARCH = SMALL | dict(norm_layer_eps=1e-5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in both formats, with overrides in the file."""
    pytest.importorskip("birder")
    directory, net = tmp_path_factory.mktemp("formats"), birder_net(config=ARCH)
    return [write(net, directory, config=ARCH) for write in (write_checkpoint, write_safetensors)]


def test_read_both_formats(files):
    pt, safe = map(read_checkpoint, files)
    for field in dataclasses.fields(pt):
        if field.name not in ("path", "state", "head"):
            assert getattr(pt, field.name) == getattr(safe, field.name), field.name
    assert pt.img_size == (224, 224) and pt.config["norm_layer_eps"] == 1e-5
    for ours, theirs in ((pt.state, safe.state), (pt.head, safe.head)):
        assert set(ours) == set(theirs)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert set(pt.head) == {"classifier.weight", "classifier.bias"}


def test_read_weights_without_metadata(files, tmp_path):
    state = torch.load(files[0], weights_only=True)["state"]
    torch.save(state, tmp_path / "state.pt")
    checkpoint = read_checkpoint(tmp_path / "state.pt")
    assert checkpoint.origin == "birder" and checkpoint.img_size is None
    assert set(checkpoint.state) == set(read_checkpoint(files[0]).state)


@pytest.mark.parametrize("write", [write_checkpoint, write_safetensors])
@pytest.mark.parametrize("name", ["rope_i_vit_reg1_s16_pn_npn_avg_c1", "rope_vit_reg4_b14"])
def test_read_detector(name, write, tmp_path, monkeypatch):
    """The backbone of birder's LW-DETR, in which it has no final norm."""
    pytest.importorskip("birder")
    from birder.common import fs_ops
    from birder.model_registry import registry

    patch = resolve_arch(name).patch_size
    small = dict(num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=96)
    size = (5 * patch, 5 * patch)
    backbone = birder_net(name, registry.all_nets[name].config | small, size=size)
    detector = registry.detection_net_factory("lw_detr_2stg", 3, backbone.float(), size=size)
    fill(detector)
    path = write_detector(write, fs_ops, detector, tmp_path, small, monkeypatch)
    checkpoint = read_checkpoint(path)
    assert checkpoint.is_detector and checkpoint.img_size == size
    arch = dataclasses.asdict(resolve_arch(name)) | small
    ours = RoPEViT(arch, pretrain_img_size=size, rope_interpolation="none", final_norm=False)
    ours.load_pretrained(path)
    ours.double().eval()
    for height, width in ((5, 5), (7, 9)):
        images = seeded_images((1, 3, height * patch, width * patch))
        with torch.no_grad():
            (actual,) = ours(images)
        expected = birder_map(detector.backbone.double(), images, final_norm=False)
        assert relative_error(actual, expected) <= 1e-9
    if resolve_arch(name).post_norm:
        with pytest.raises(UserError, match="set final_norm=False"):
            RoPEViT(arch, pretrain_img_size=size).load_pretrained(path)


def write_detector(write, fs_ops, detector, directory, config, monkeypatch):
    """The file that birder's training writes, with the overrides of the backbone's config."""
    function = "checkpoint_model" if write is write_checkpoint else "save_st"
    original = getattr(fs_ops, function)

    def with_backbone_config(*args, **kwargs):
        return original(*args, **kwargs, external_backbone_config=config)

    monkeypatch.setattr(fs_ops, function, with_backbone_config)
    return write(detector, directory)
