"""Reading checkpoints: strict both ways, clear when it does not fit, nothing executed."""

import os
import pickle

import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.weights.architectures import arch_names, names_of, resolve_arch
from ropevit_mmdet.weights.checkpoint import load_into, read_checkpoint
from ropevit_mmdet.weights.settings import arch_facts, facts_of
from tests.malformed_files import Payload
from tests.oracle import RGB_STATS, SMALL, birder_net, fill, write_checkpoint


@pytest.fixture(scope="module")
def birder_file(tmp_path_factory):
    pytest.importorskip("birder")
    return write_checkpoint(birder_net(config=SMALL), tmp_path_factory.mktemp("birder"))


def load(path, arch=SMALL, **arguments) -> RoPEViT:
    model = RoPEViT(arch, **arguments, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
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


def test_facts_of_a_birder_file(birder_file):
    checkpoint = read_checkpoint(birder_file)
    assert checkpoint.origin == "birder" and checkpoint.version == "v0.8.4"
    assert checkpoint.img_size == (224, 224)
    assert checkpoint.rgb_stats == RGB_STATS
    assert len(checkpoint.class_to_idx) == 7
    assert set(checkpoint.ignored) == {"classifier.weight", "classifier.bias"}
    assert facts_of(checkpoint.state) == arch_facts(resolve_arch(SMALL))


def test_every_tensor_arrives(birder_file):
    model, state = load(birder_file), torch.load(birder_file, weights_only=True)["state"]
    ours = dict(model.named_parameters())
    assert len(ours) == len(state) - 2  # less the classifier
    assert torch.equal(ours["pos_embed"], state["pos_embedding"])
    assert torch.equal(ours["blocks.3.mlp.fc2.bias"], state["encoder.block.3.mlp.3.bias"])


def test_a_key_too_many_or_too_few_is_named(birder_file, tmp_path):
    with pytest.raises(ValueError, match=r"not in the model: blocks\.1\.attn\.extra"):
        load(edited(birder_file, tmp_path, **{"encoder.block.1.attn.extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"not in it: blocks\.2\.norm2\.weight"):
        load(edited(birder_file, tmp_path, **{"encoder.block.2.norm2.weight": None}))


def test_nothing_is_copied_where_something_does_not_fit():
    model = fill(RoPEViT(SMALL))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items()}
    state["norm.weight"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"norm\.weight is \(5,\), the model has \(32,\)"):
        load_into(model, state, "the file")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_architecture_is_named_with_the_line_to_paste(birder_file, tmp_path):
    with pytest.raises(ValueError, match=r"num_layers 4 \(not 6\).*arch=dict\(.*num_layers=4"):
        load(birder_file, dict(SMALL, num_layers=6))
    tiny = write_checkpoint(birder_net("rope_vit_reg1_t14"), tmp_path, "tiny")
    with pytest.raises(ValueError, match="set arch='rope_vit_reg1_t14'"):
        load(tiny, "rope_vit_t14")


def test_another_image_size_is_an_error_with_the_line_to_paste(birder_file):
    with pytest.raises(ValueError, match="set pretrain_img_size=224"):
        load(birder_file, pretrain_img_size=448)


def test_a_config_in_the_file_that_contradicts_is_an_error(tmp_path):
    pytest.importorskip("birder")
    override = dict(norm_layer_eps=1e-5)
    net = birder_net(config=SMALL | override)
    path = write_checkpoint(net, tmp_path, config=override)
    with pytest.raises(ValueError, match="norm_layer_eps=1e-05"):
        load(path)
    load(path, SMALL | override)


def test_parts_that_are_not_built_are_left_out(birder_file):
    model = load(birder_file, out_indices=1)
    assert len(model.blocks) == 2
    load(birder_file, final_norm=False)


def test_a_stranger_pickle_is_refused_and_does_not_run(tmp_path):
    payload = Payload(os.mkdir, str(tmp_path / "owned"))
    torch.save({"state": {"a": payload}}, tmp_path / "bad.pt")
    with open(tmp_path / "plain.pt", "wb") as file:
        pickle.dump(payload, file)
    for name in ("bad.pt", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name} is refused"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_short_is_called_that(birder_file, tmp_path, size):
    content = birder_file.read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(ValueError, match=r"cut\.pt is (truncated|refused)"):
        read_checkpoint(cut)


def test_other_files_are_not_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="neither"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"state": {"conv.weight": torch.zeros(1)}}, tmp_path / "cnn.pt")
    with pytest.raises(ValueError, match="not of a RoPE ViT"):
        read_checkpoint(tmp_path / "cnn.pt")


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_our_own_checkpoints_load_too(tmp_path, prefix):
    trained = fill(RoPEViT(SMALL))
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    if prefix:
        state["neck.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "epoch_1.pth")
    model = load(tmp_path / "epoch_1.pth", window_size=4)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_pretraining_grid_stays_when_patches_are_resampled(birder_file):
    model = load(birder_file, patch_size=16)
    assert model.pretrain_grid == (16, 16) and model.pos_embed.shape[1] == 256 + 5
    assert model(torch.zeros(1, 3, 256, 320))[0].shape == (1, 32, 16, 20)


OTHER_NETWORKS = ("naflex_", "rope_flexivit_")  # subclasses with forwards of their own


def test_names_are_those_of_birder():
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
