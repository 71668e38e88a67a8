"""birder's .safetensors: the same as its .pt, and clear where a file is cut or lies."""

import dataclasses
import json
import struct
import sys

import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from tests.oracle import SMALL, birder_net, write_checkpoint, write_safetensors

pytest.importorskip("birder")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in both formats, with overrides in the file."""
    directory, config = tmp_path_factory.mktemp("formats"), SMALL | dict(norm_layer_eps=1e-5)
    net = birder_net(config=config)
    return (
        write_checkpoint(net, directory, config=config),
        write_safetensors(net, directory, config=config),
    )


def test_both_formats_hold_the_same(files):
    pt, safe = map(read_checkpoint, files)
    for field in dataclasses.fields(pt):
        if field.name not in ("path", "state", "head"):
            assert getattr(pt, field.name) == getattr(safe, field.name), field.name
    assert pt.img_size == (224, 224) and pt.config["norm_layer_eps"] == 1e-5
    for ours, theirs in ((pt.state, safe.state), (pt.head, safe.head)):
        assert set(ours) == set(theirs)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert set(pt.head) == {"classifier.weight", "classifier.bias"}


def test_both_formats_load_the_same(files):
    arch = SMALL | dict(norm_layer_eps=1e-5)
    models = []
    for path in files:
        models.append(RoPEViT(arch, init_cfg=dict(type="Pretrained", checkpoint=str(path))))
        models[-1].init_weights()
    pt, safe = (model.state_dict() for model in models)
    assert all(torch.equal(value, safe[key]) for key, value in pt.items())


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 0.3, 0.99, -1])
def test_a_file_cut_short_is_called_that(files, tmp_path, size):
    content = files[1].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(ValueError, match=r"cut\.safetensors: truncated"):
        read_checkpoint(cut)


def lying(path, tmp_path, change, length=None):
    """A copy whose header went through ``change``, with a length of its own where given."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = change(json.loads(content[8:end]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    lie = tmp_path / "lie.safetensors"
    size = struct.pack("<Q", len(header) if length is None else length)
    lie.write_bytes(size + header + content[end:])
    return lie


KEY = "encoder.block.0.attn.qkv.weight"
LIES = {
    "longer than the file": lambda header: header[KEY].update(data_offsets=[0, 2**40]),
    "backwards": lambda header: header[KEY].update(data_offsets=[4096, 0]),
    "another tensor's bytes": lambda header: header[KEY].update(
        data_offsets=header["norm.weight"]["data_offsets"]
    ),
    "more numbers than bytes": lambda header: header[KEY].update(shape=[2**30, 2**30]),
    "numbers beyond counting": lambda header: header[KEY].update(shape=[2**63, 2**63]),
    "less than no numbers": lambda header: header[KEY].update(shape=[-96, -32]),
    "no such type": lambda header: header[KEY].update(dtype="PICKLE"),
    "bytes of nobody": lambda header: header.pop(KEY),
    "not a tensor": lambda header: header.update({KEY: 5}),
    "metadata that are no words": lambda header: header["__metadata__"].update(signature=[1]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(files, tmp_path, lie):
    def change(header):
        LIES[lie](header)
        return header

    with pytest.raises(ValueError, match=r"lie\.safetensors: truncated, or not a safetensors file"):
        read_checkpoint(lying(files[1], tmp_path, change))


@pytest.mark.parametrize("length", [0, 2**31, 2**63])
def test_a_header_of_another_length_is_refused(files, tmp_path, length):
    with pytest.raises(ValueError, match="truncated, or not a safetensors file"):
        read_checkpoint(lying(files[1], tmp_path, lambda header: header, length))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("signature", "{", "signature in its metadata is not JSON"),
        ("signature", "[" * 100_000, "signature in its metadata is not JSON"),
        ("signature", "[]", "its signature is"),
        ("signature", '{"inputs": []}', "its signature gives no image size"),
        ("signature", '{"inputs": [{"data_shape": [0, 3, "a", 224]}]}', "gives no image size"),
        ("signature", '{"inputs": [{"data_shape": [0, 3, 0, 224]}]}', "gives no image size"),
        ("rgb_stats", '{"mean": [0.5, 0.5, 0.5]}', "its rgb_stats are not"),
        ("rgb_stats", '{"mean": [0.5], "std": [0.5]}', "its rgb_stats are not"),
        ("rgb_stats", "7", "its rgb_stats is 7"),
        ("class_to_idx", "[1]", "its class_to_idx is"),
        ("config", '"rope"', "its config is"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(files, tmp_path, key, value, message):
    def change(header):
        header["__metadata__"][key] = value
        return header

    with pytest.raises(ValueError, match=message):
        read_checkpoint(lying(files[1], tmp_path, change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("signature", {"inputs": [{}]}, "gives no image size"),
        ("rgb_stats", {"mean": (0.5, 0.5, "a"), "std": (1, 1, 1)}, "its rgb_stats are not"),
        ("class_to_idx", 3, "its class_to_idx is 3"),
        ("birder_version", 8, "its birder_version is 8"),
    ],
)
def test_the_same_of_a_pt_file(files, tmp_path, key, value, message):
    content = torch.load(files[0], weights_only=True)
    torch.save(content | {key: value}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "odd.pt")


def test_a_state_of_other_things_than_tensors_is_refused(files, tmp_path):
    content = torch.load(files[0], weights_only=True)
    content["state"]["norm.weight"] = [1.0] * 32
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"'norm\.weight' in its state is not a tensor"):
        read_checkpoint(tmp_path / "odd.pt")


def test_without_the_library_it_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        read_checkpoint(files[1])
