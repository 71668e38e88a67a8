"""Malformed files: an error in one line that names the file, and no code in them runs."""

import os
import pickle
import re

import numpy as np
import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import check_start, read_detector_checkpoint
from tests.malformed_files import KNOWN, WRONG, Payload, archive, saved
from tests.oracle import RGB_STATS, SMALL, birder_net, fill, write_checkpoint, write_safetensors

FORMATS = ["birder .pt", "birder .safetensors", "detector .pth", "detector .pth of torch 1.5"]
KEY = "encoder.block.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A valid file of every format, and the function that reads it."""
    pytest.importorskip("birder")
    directory = tmp_path_factory.mktemp("valid")
    net = birder_net(config=SMALL, dtype=torch.float32)
    content = dict(meta=dict(epoch=1), state_dict={"backbone.a": torch.randn(40, 40)})
    torch.save(content, directory / "detector.pth")
    torch.save(content, directory / "old.pth", _use_new_zipfile_serialization=False)
    return {
        "birder .pt": (write_checkpoint(net, directory), read_checkpoint),
        "birder .safetensors": (write_safetensors(net, directory), read_checkpoint),
        "detector .pth": (directory / "detector.pth", read_detector_checkpoint),
        "detector .pth of torch 1.5": (directory / "old.pth", read_detector_checkpoint),
    }


def refusal(reader, path) -> str:
    with pytest.raises(UserError) as caught:
        reader(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", FORMATS)
def test_other_files(files, name, tmp_path):
    valid, reader = files[name]
    path = tmp_path / f"wrong{valid.suffix}"
    for content in WRONG.values():
        path.write_bytes(content)
        refusal(reader, path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", KNOWN)
def test_files_are_named_for_what_they_are(name, tmp_path):
    content, words = KNOWN[name]
    (tmp_path / "detector.pth").write_bytes(content)
    for reader in (read_checkpoint, read_detector_checkpoint):
        assert re.search(rf"detector\.pth {words}", refusal(reader, tmp_path / "detector.pth"))


@pytest.mark.parametrize("suffix", ["", ".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["birder .pt", "birder .safetensors"])
def test_formats_are_known_by_their_content(files, name, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(files[name][0].read_bytes())
    assert read_checkpoint(path).rgb_stats == RGB_STATS


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(files, name, tmp_path):
    valid, reader = files[name]
    content, path = valid.read_bytes(), tmp_path / f"cut{valid.suffix}"
    for size in {*np.linspace(0, len(content) - 1, 30).astype(int).tolist(), *range(12)}:
        path.write_bytes(content[:size])
        assert "truncated" in refusal(reader, path)


def test_flipped_bits(files, tmp_path):
    """Files of torch have checksums: the weights are the same, or refused."""
    valid, reader = files["birder .pt"]
    path, random, refused = tmp_path / "flipped.pt", np.random.default_rng(0), 0
    expected = reader(valid).state
    for _ in range(60):
        content = bytearray(valid.read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
        try:
            state = reader(path).state
        except UserError:
            refused += 1
        else:
            assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert refused > 20


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_does_not_run(suffix, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / f"bad{suffix}"
    payload = Payload(os.mkdir, str(marker))
    pickled = pickle.dumps(payload)
    for content in (
        pickled,
        archive({"a/data.pkl": pickled, "a/version": "3\n"}),
        saved(payload),
        saved({"state_dict": {KEY: payload}}),
    ):
        path.write_bytes(content)
        for reader in (read_checkpoint, read_detector_checkpoint):
            refusal(reader, path)
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()  # the file is as bad as it looks


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("signature", "{"),
        ("signature", {"inputs": []}),
        ("rgb_stats", {"mean": [0.5, 0.5, 0.5]}),
        ("config", 7),
    ],
)
def test_metadata(files, key, value, tmp_path):
    content = torch.load(files["birder .pt"][0], weights_only=True)
    torch.save(content | {key: value}, tmp_path / "bad.pt")
    message = refusal(read_checkpoint, tmp_path / "bad.pt")
    assert "its metadata are not those of a checkpoint" in message


def test_detector_checkpoint_of_another_type(files, tmp_path):
    for name in ("birder .pt", "birder .safetensors"):
        message = refusal(read_detector_checkpoint, files[name][0])
        assert "is birder's, of a backbone only; to train a detector" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "no meta.epoch, meta.iter, message_hub, optimizer; to start from its weights, pass"),
        (dict(meta=dict(iter=1, epoch=0)), "it has no message_hub, optimizer; to start"),
    ],
)
def test_check_start_resume(content, words, tmp_path):
    model = fill(RoPEViT(SMALL))
    path = tmp_path / "iter_1.pth"
    torch.save(content | dict(state_dict=model.state_dict()), path)

    check_start(model, dict(load_from=str(path)))
    with pytest.raises(UserError, match=words):
        check_start(model, dict(load_from=str(path), resume=True))
    run = dict(meta=dict(iter=1, epoch=0), message_hub={}, optimizer={})
    torch.save(run | dict(state_dict={"a": torch.ones(2)}), path)
    with pytest.raises(UserError, match="does not fit the model: "):
        check_start(model, dict(load_from=str(path), resume=True))
