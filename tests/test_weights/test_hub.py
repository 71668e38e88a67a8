"""Checkpoints by path, URL and name: downloaded once, verified, and errors in one line."""

import dataclasses
import hashlib

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.hub import cached_file, hub_repository, resolve_weights
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
    assert "checkpoint is a directory, name a file in it: " in failure(tmp_path)
    for missing in (tmp_path / "gone.pt", "x" * 300, "a\0b", (tmp_path / "x").as_uri()):
        assert "checkpoint not found: " in failure(missing)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("birder://rope_vit_reg4_b14_capi-place365", f"did you mean '{NAME}' or"),
        ("birder://../../etc/passwd", "`ropevit weights` lists them"),
        ("timm://vit_small_patch16_dino", "did you mean 'vit_small_patch16_dinov3'"),
        ("timm://vit_base_patch14_dinov2", "timm publishes no RoPE ViT of that name"),
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
    for address in (url, url.replace("resolve", "blob")):  # the second is that of its page
        assert resolve_weights(address).read_bytes() == b"second"


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


@pytest.mark.parametrize("tag", ["", ".sat493m"])
def test_resolve_weights_timm(tag, hf_hub):
    """The weights and, next to them, the files with architecture and normalization."""
    name = "vit_large_patch16_dinov3"
    directory = f"/timm/{name}{tag or '.lvd1689m'}/resolve/main"
    hf_hub.files[f"{directory}/model.safetensors"] = CONTENT
    hf_hub.files[f"{directory}/config.json"] = b"{}"
    path = resolve_weights(f"timm://{name}{tag}")
    assert path.read_bytes() == CONTENT and (path.parent / "config.json").read_bytes() == b"{}"
    assert not (path.parent / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        (f"birder://{NAME}", f"birder-project/{NAME}"),
        ("timm://eva02_tiny_patch14_224", "timm/eva02_tiny_patch14_224.mim_in22k"),
        (f"https://huggingface.co{FILE}", "me/detector"),
        ("a.pth", None),
    ],
)
def test_hub_repository(source, repository):
    assert hub_repository(source) == repository


def test_resolve_weights_url(server, cache):
    """Files of one name at several addresses are several files."""
    addresses = [f"{server.url}/{end}" for end in ("a/model.pt", "b/model.pt", "a/model.pt?id=2")]
    for path in ("/a/model.pt", "/b/model.pt"):
        server.files[path] = path.encode() + CONTENT
    paths = [resolve_weights(address) for address in addresses]
    assert len({*paths}) == 3 and {path.parent for path in paths} == {cache}
    assert [path.read_bytes()[:3] for path in paths] == [b"/a/", b"/b/", b"/a/"]
    assert [resolve_weights(address) for address in addresses] == paths
    assert len(server.requests) == 3
    message = failure(f"{server.url}/a/other.pt")
    assert "HTTP Error 404" in message and f"to {cache / 'other-'}" in message
    assert not list(cache.glob("other*.pt")) and not list(cache.glob("other*.partial"))


@pytest.mark.parametrize("name", ["resnet50-0676ba61.pth", "rtmdet_20230101-1a2b3c4d5e.pth"])
def test_resolve_weights_url_with_a_hash_keeps_the_name_of_torch_hub(name, server, cache):
    server.files[f"/{name}"] = CONTENT
    assert resolve_weights(f"{server.url}/{name}") == cache / name


def test_mmengine_reads_from_the_hub(hf_hub, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "saved.pt")
    hf_hub.files[FILE] = (tmp_path / "saved.pt").read_bytes()
    source = "hf://me/detector/weights/epoch_3.pth"
    assert CheckpointLoader.load_checkpoint(source, map_location="cpu")["x"] == 1
