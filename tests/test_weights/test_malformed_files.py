"""Files from strangers: whatever is in them, a clear error or the weights, and nothing runs."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.compat.reading import read_torch_file
from ropevit_mmdet.errors import user_message
from ropevit_mmdet.evaluation.result_file import read_results
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.lookup import resolve_weights
from tests.malformed_files import (
    WRONG,
    Payload,
    archive,
    saved,
    with_a_flipped_bit,
    write_lies,
)
from tests.oracle import SMALL, birder_net, write_checkpoint, write_safetensors
from tests.processes import ROOT
from tests.test_cli.test_tools import load_tool
from tests.tiny_coco import write_tiny

FLIPS = int(os.environ.get("ROPEVIT_FLIPS", "60"))  # per kind of file


def detector_state():
    return {"backbone.a": torch.randn(40, 40), "neck.b": torch.randn(300), "c": torch.tensor(3)}


def results():
    boxes, labels = torch.rand(3, 4), torch.tensor([0, 1, 1])
    found = dict(bboxes=boxes, labels=labels, scores=torch.rand(3))
    return [dict(img_id=number, pred_instances=found) for number in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound file of every kind, with what reads it and what of it must stay the same."""
    pytest.importorskip("birder")
    pytest.importorskip("safetensors")
    directory = tmp_path_factory.mktemp("sound")
    net = birder_net(config=SMALL, dtype=torch.float32)
    state, meta = detector_state(), dict(epoch=1, dataset_meta=dict(classes=("a",)))
    torch.save(dict(meta=meta, state_dict=state), directory / "detector.pth")
    torch.save(
        dict(meta=meta, state_dict=state),
        directory / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    (directory / "results.pkl").write_bytes(pickle.dumps(results()))
    birder, detector = _birder_weights, _detector_weights
    return {
        "birder .pt": (write_checkpoint(net, directory), birder, torch.equal),
        "birder .safetensors": (write_safetensors(net, directory), birder, _same_shape),
        "detector .pth": (directory / "detector.pth", detector, torch.equal),
        "detector .pth, before torch 1.6": (directory / "old.pth", detector, _same_shape),
        "results .pkl": (directory / "results.pkl", _result_numbers, None),
    }


KINDS = [
    "birder .pt",
    "birder .safetensors",
    "detector .pth",
    "detector .pth, before torch 1.6",
    "results .pkl",
]


def _birder_weights(path):
    checkpoint = read_checkpoint(path)
    return checkpoint.state | checkpoint.head


def _detector_weights(path):
    return read_detector_checkpoint(str(path))["state_dict"]


def _result_numbers(path):
    return {str(i): torch.from_numpy(found.boxes) for i, found in enumerate(read_results(path))}


def _same_shape(a, b):
    return a.shape == b.shape


def outcome(reader, path):
    """What a file holds, or the one line that refuses it; anything else is a failure."""
    try:
        return reader(path)
    except ValueError as error:
        message = str(error)
        assert path.name in message and "\n" not in message and len(message) < 1000, message
        return message


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind(files, kind, tmp_path):
    sound, reader, _ = files[kind]
    path = tmp_path / f"wrong{sound.suffix}"
    for name, content in WRONG.items():
        path.write_bytes(content)
        start = time.monotonic()
        assert isinstance(outcome(reader, path), str), name
        assert time.monotonic() - start < 10, name
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_short(files, kind, tmp_path):
    sound, reader, _ = files[kind]
    content, path = sound.read_bytes(), tmp_path / f"cut{sound.suffix}"
    offsets = {*np.linspace(0, len(content) - 1, 50).astype(int).tolist()}
    offsets |= {len(content) - i for i in range(1, 40)} | set(range(20))
    for offset in sorted(offsets):
        path.write_bytes(content[:offset])
        assert isinstance(outcome(reader, path), str), offset


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits(files, kind, tmp_path):
    """Where a format has checksums the weights are the same or refused, else of the same shapes."""
    sound, reader, same = files[kind]
    content, path = sound.read_bytes(), tmp_path / f"flipped{sound.suffix}"
    expected, random = reader(sound), np.random.default_rng(0)
    refused = 0
    for _ in range(FLIPS):
        path.write_bytes(with_a_flipped_bit(content, random))
        found = outcome(reader, path)
        refused += isinstance(found, str)
        if same is not None and not isinstance(found, str):
            pairs = ((value, expected.get(key)) for key, value in found.items())
            assert all(b is None or same(a, b) for a, b in pairs), kind
    print(f"{kind}: {FLIPS} flips, {refused} refused")
    assert refused


def test_an_archive_without_checksums_loads(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(detector_state(), tmp_path / "unsummed.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert set(_detector_weights(tmp_path / "unsummed.pth")) == set(detector_state())


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "~nobody-of-that-name/x", "a\0b", ""])
def test_paths_that_are_none(path):
    """A name too long, a home of nobody."""
    for read in (read_torch_file, read_checkpoint, read_detector_checkpoint, resolve_weights):
        with pytest.raises(FileNotFoundError) as caught:
            read(path)
        message = user_message(caught.value)
        assert path.rstrip("/") in message and "\n" not in message
    with pytest.raises(ValueError, match="does not exist; tools/test"):
        read_results(path)


def test_results_that_are_no_numbers(tmp_path):
    path = tmp_path / "results.pkl"
    sound = dict(bboxes=np.zeros((1, 4)), labels=np.zeros(1), scores=np.zeros(1))
    for entry in (
        dict(img_id=1, pred_instances=sound | dict(scores=["x"])),
        dict(img_id=1, pred_instances=sound | dict(bboxes=np.zeros(3))),
        dict(img_id=1, pred_instances=sound | dict(labels=[10**400])),
        dict(img_id=1, pred_instances=sound | dict(scores=[[1], [2, 3]])),
        dict(img_id=1, pred_instances=sound | dict(bboxes=torch.zeros(1, 4).requires_grad_())),
        dict(img_id=float("inf"), pred_instances=sound),
        dict(img_id="x", pred_instances=sound),
    ):
        path.write_bytes(pickle.dumps([entry]))
        assert isinstance(outcome(_result_numbers, path), str)


# ---- code


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_pickle_runs(suffix, protocol, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / f"bad{suffix}"
    payload = Payload(os.mkdir, str(marker))
    for content in (
        pickle.dumps(payload, protocol=protocol),
        pickle.dumps([dict(img_id=1, pred_instances=payload)], protocol=protocol),
        archive({"a/data.pkl": pickle.dumps(payload, protocol=protocol), "a/version": "3\n"}),
        saved(payload) if protocol == 2 else b"",
    ):
        path.write_bytes(content)
        for reader in (read_torch_file, _birder_weights, _detector_weights, _result_numbers):
            assert isinstance(outcome(reader, path), str)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the file is as bad as it looks


@pytest.mark.parametrize("key", ["signature", "class_to_idx", "rgb_stats", "config", "format"])
def test_no_pickle_in_metadata_runs(files, key, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "bad.safetensors"
    content = files["birder .safetensors"][0].read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    pickled = pickle.dumps(Payload(os.mkdir, str(marker)), protocol=0)
    header["__metadata__"][key] = pickled.decode("latin1")
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[end:])
    assert isinstance(outcome(_birder_weights, path), str) or key == "format"
    assert not marker.exists()


# ---- numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(files, value, tmp_path):
    content = torch.load(files["birder .pt"][0], weights_only=True)
    content["state"]["encoder.block.1.attn.qkv.weight"][3, 4] = value
    torch.save(content, tmp_path / "broken.pt")
    model = RoPEViT(SMALL)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"broken\.pt holds NaN or infinite values in 1 of \d+ t"):
        model.load_pretrained(str(tmp_path / "broken.pt"))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    state = {key: torch.full_like(tensor, value) if key != "c" else tensor
             for key, tensor in detector_state().items()}  # fmt: skip
    torch.save(dict(state_dict=state), tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"in 2 of 3 tensors: backbone\.a, neck\.b; it was saved"):
        read_detector_checkpoint(str(tmp_path / "broken.pth"))


def test_training_does_not_start_from_them(tmp_path, capsys):
    from mmengine.config import Config

    from ropevit_mmdet.engine.config import build_detector

    config = write_tiny(tmp_path)
    state = build_detector(Config.fromfile(config)).state_dict()
    path, meta = tmp_path / "iter_1.pth", dict(iter=1, epoch=0)
    first = next(iter(state))
    broken = state | {first: torch.full_like(state[first], np.nan)}
    resume, load_from = ["--resume", str(path)], ["--cfg-options", f"load_from={path}"]
    for content, arguments, words in (
        (dict(meta=meta, state_dict=broken), resume, "holds NaN or infinite values in 1 of"),
        (dict(meta=meta, state_dict=broken), load_from, "holds NaN or infinite values in 1 of"),
        (dict(meta=[1], state_dict=state), load_from, "its meta is [1], which is invalid"),
        (state, resume, "no meta.epoch, meta.iter, message_hub, optimizer; to start from its"),
        (dict(meta=meta, state_dict=state), resume, "has no message_hub, optimizer; to start from"),
    ):
        torch.save(content, path)
        with pytest.raises(SystemExit) as left:
            load_tool("train").main([str(config), "--work-dir", str(tmp_path / "run"), *arguments])
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert words in said and str(path) in said
    assert not (tmp_path / "run").exists()


READING = """
import json, resource, sys, time
from pathlib import Path
from ropevit_mmdet.weights.checkpoint import read_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, start = peak(), time.monotonic()
    try:
        read_checkpoint(path)
        message = "read"
    except ValueError as error:
        message = str(error)
    found[path.stem] = message, peak() - before, time.monotonic() - start
print(json.dumps(found))
"""


def test_lying_headers_take_little_memory_and_time(tmp_path):
    """Peak memory of the whole process is measured, file by file."""
    pytest.importorskip("safetensors")
    write_lies(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(json.dumps({name: values[1:] for name, values in found.items()}))
    for name, (message, megabytes, seconds) in found.items():
        assert message != "read" and "\n" not in message, name
        assert megabytes < 200 and seconds < 20, (name, megabytes, seconds)
