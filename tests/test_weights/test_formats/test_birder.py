"""birder's `.pt` and `.safetensors` are read to the same."""

import dataclasses

import pytest
import torch

from ropevit_mmdet.weights.checkpoint import read_checkpoint
from tests.oracle import SMALL, birder_net, write_checkpoint, write_safetensors

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
