"""Checkpoints by path, URL and name: downloaded once, verified, and errors in one line."""

import dataclasses
import hashlib

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.hub import cached_file, resolve_weights
from ropevit_mmdet.weights.published import WEIGHTS

NAME = "rope_vit_reg4_b14_capi-places365"
OLD = next(name for name, weights in WEIGHTS.items() if "huggingface" not in weights.url)
CONTENT = b"checkpoint" * 1000
ON_HUB = f"/birder-project/{NAME}/resolve/main/{NAME}.pt"
FILE = "/me/detector/resolve/main/weights/epoch_3.pth"


@pytest.fixture
def published(monkeypatch):
    """birder's entry with the sha256 of CONTENT."""
    entry = dataclasses.replace(WEIGHTS[NAME], sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(WEIGHTS, NAME, entry)
    return entry


def failure(source) -> str:
    with pytest.raises(UserError) as caught:
        resolve_weights(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_resolve_weights_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "a b.pt"
    file.write_bytes(b"x")
    for source in (str(file), file, file.as_uri(), "~/a b.pt"):
        assert resolve_weights(source) == file
    for missing in (tmp_path / "gone.pt", tmp_path, "x" * 300, "a\0b", (tmp_path / "x").as_uri()):
        assert "checkpoint not found: " in failure(missing)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("birder://rope_vit_reg4_b14_capi-place365", f"did you mean {NAME} or"),
        ("birder://../../etc/passwd", "`ropevit weights` lists them"),
        ("s3://bucket/file.pt", "expected a path, an http"),
        ("hf://owner/repo", "expected a path"),
        ("hf://file.pt", "expected a path"),
    ],
)
def test_resolve_weights_unknown(source, words, cache):
    assert words in failure(source) and not cache.exists()


def test_resolve_weights_birder(hf_hub, cache, published):
    hf_hub.files[ON_HUB] = CONTENT
    path = resolve_weights(f"birder://{NAME}")
    assert path.name == f"{NAME}.pt" and path.read_bytes() == CONTENT
    assert path == cached_file(published) == resolve_weights(f"{published.url}?download=true")
    assert hf_hub.requests.count(("GET", ON_HUB)) == 1
    assert not cache.exists()


def test_resolve_weights_birder_offline(cache, published):
    message = failure(f"birder://{NAME}")
    assert "that HF_HUB_OFFLINE is not set" in message
    assert f"or download {published.url} to {cache / NAME}.pt" in message
    cache.mkdir(parents=True)
    (cache / f"{NAME}.pt").write_bytes(CONTENT)  # by hand, or by birder itself
    assert resolve_weights(f"birder://{NAME}") == cache / f"{NAME}.pt"


def test_resolve_weights_birder_sha256(hf_hub, cache, published, tmp_path):
    hf_hub.files[ON_HUB] = b"not the published file"
    message = failure(f"birder://{NAME}")
    assert f"another sha256 than {published.sha256}" in message and "was deleted" in message
    assert not any(path.suffix == ".pt" for path in (tmp_path / "hf_hub").rglob("*"))
    assert not any((tmp_path / "hf_hub").rglob("blobs/*"))
    hf_hub.files[ON_HUB] = CONTENT
    assert resolve_weights(f"birder://{NAME}").read_bytes() == CONTENT


def test_resolve_weights_birder_other_url(server, cache, monkeypatch):
    """One published file is not on the hub."""
    entry = dataclasses.replace(WEIGHTS[OLD], directory=f"{server.url}/models")
    monkeypatch.setitem(WEIGHTS, OLD, entry)
    server.files[f"/models/{OLD}.pt"] = CONTENT
    assert "was deleted" in failure(f"birder://{OLD}")
    assert not (cache / f"{OLD}.pt").exists()
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(WEIGHTS, OLD, dataclasses.replace(entry, sha256=sha256))
    assert resolve_weights(f"birder://{OLD}") == cache / f"{OLD}.pt"


def test_resolve_weights_hf(hf_hub):
    hf_hub.files[FILE] = CONTENT
    path = resolve_weights("hf://me/detector/weights/epoch_3.pth")
    assert path.read_bytes() == CONTENT and path.name == "epoch_3.pth"
    hf_hub.files[FILE.replace("main", "v2")] = b"second"
    assert resolve_weights("hf://me/detector@v2/weights/epoch_3.pth").read_bytes() == b"second"
    url = f"https://huggingface.co{FILE.replace('main', 'v2')}"
    assert resolve_weights(url).read_bytes() == b"second"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms on its page and log in with"),
        ((401, "RepoNotFound"), "no such repository, or a private one: log in with"),
        ((404, "RevisionNotFound"), "no such revision"),
        ((404, "EntryNotFound"), "no such file"),
    ],
)
def test_resolve_weights_hf_error(error, words, hf_hub):
    hf_hub.errors[FILE] = error
    message = failure("hf://me/detector/weights/epoch_3.pth")
    assert words in message and "hf://me/detector/weights/epoch_3.pth" in message


def test_resolve_weights_url(server, cache):
    server.files["/a/file.pt"] = CONTENT
    path = resolve_weights(f"{server.url}/a/file.pt?token=x")
    assert path == cache / "file.pt" and path.read_bytes() == CONTENT
    assert resolve_weights(f"{server.url}/a/file.pt") == path
    assert len(server.requests) == 1
    message = failure(f"{server.url}/a/other.pt")
    assert "HTTP Error 404" in message and f"to {cache / 'other.pt'}" in message
    assert not list(cache.glob("other.pt*.partial")) and not (cache / "other.pt").exists()


def test_mmengine_reads_from_the_hub(hf_hub, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "saved.pt")
    hf_hub.files[FILE] = (tmp_path / "saved.pt").read_bytes()
    source = "hf://me/detector/weights/epoch_3.pth"
    assert CheckpointLoader.load_checkpoint(source, map_location="cpu")["x"] == 1
