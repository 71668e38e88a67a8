"""Checkpoints by name and URL: what is refused, what is cached, and servers of every kind."""

import dataclasses
import hashlib
import os
import shutil
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_colors
from ropevit_mmdet.errors import user_message
from ropevit_mmdet.weights import download, lookup
from ropevit_mmdet.weights.download import DownloadError
from ropevit_mmdet.weights.lookup import resolve_weights
from ropevit_mmdet.weights.published import WEIGHTS
from tests.oracle import SMALL, birder_net, write_checkpoint

ZIP = b"PK\3\4"  # as a checkpoint begins
CONTENT = ZIP + np.random.RandomState(0).bytes(299_996)
NAME = "rope_vit_reg4_b14_capi-places365"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def publish(monkeypatch):
    """Has birder's name stand for a file of a server."""

    def put(server, content=CONTENT, **changes):
        facts = dict(
            directory=server.url,
            sha256=hashlib.sha256(content).hexdigest(),
            megabytes=round(len(content) / 2**20, 1),
        )
        entry = dataclasses.replace(WEIGHTS[NAME], **facts | changes)
        monkeypatch.setitem(WEIGHTS, NAME, entry)
        return f"birder://{NAME}"

    return put


def leftovers(cache) -> set[str]:
    """What lies in the cache, locks aside."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


# ---- which file


def test_local_paths(tmp_path):
    file = tmp_path / "file.pt"
    file.write_bytes(b"x")
    assert resolve_weights(str(file)) == resolve_weights(file) == file
    with pytest.raises(FileNotFoundError, match="checkpoint not found: .*gone.pt"):
        resolve_weights(tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match="not found"):
        resolve_weights(str(tmp_path))


@pytest.mark.parametrize(
    "checkpoint, words",
    [
        ("birder://rope_vit_reg4_b14_capi-place365", f"did you mean {NAME} or"),
        ("birder://../../etc/passwd", "no RoPE ViT of that name; did you mean what list_weights"),
        ("birder://", "no RoPE ViT of that name"),
        ("file:///etc/passwd", "checkpoint file://...: give a path"),
        ("s3://bucket/file.pt", "give a path"),
        ("http://host/", "does not end in the name of a file"),
        ("http://host", "does not end in the name of a file"),
        ("http://host/a/..", "does not end in the name of a file"),
        ("http://host/.bashrc", "does not end in the name of a file"),
        ("http://host/a\\..\\b.pt", "does not end in the name of a file"),
        ("http://host/a b.pt", "does not end in the name of a file"),
        (f"http://host/{'x' * 300}.pt", "does not end in the name of a file"),
        ("https://me:secret@host/x/?token=secret", r"checkpoint https://host/x/\?\.\.\. does"),
        ("http://[secret/file.pt", r"checkpoint http://\.\.\.: its host is invalid"),
        ("http://me:secret@\u2100/file.pt", r"checkpoint http://\.\.\.: its host is invalid"),
    ],
)
def test_names_that_are_refused(checkpoint, words, cache):
    with pytest.raises(ValueError, match=words) as caught:
        resolve_weights(checkpoint)
    assert "secret" not in str(caught.value) and not cache.exists()


@pytest.mark.parametrize("path", ["/../../x/file.pt", "/a/%2e%2e/file.pt", "/a//file.pt?x=/../b"])
def test_downloads_stay_in_the_cache(server, cache, path):
    assert resolve_weights(server.url + path) == cache / "file.pt"
    assert leftovers(cache) == {"file.pt", "file.pt.json"}


# ---- downloads


def test_downloaded_once(server, cache, publish):
    path = resolve_weights(publish(server))
    assert path == cache / f"{NAME}.pt" and path.read_bytes() == CONTENT
    assert resolve_weights(f"birder://{NAME}") == path
    assert resolve_weights(WEIGHTS[NAME].url + "?download=true") == path  # known by its URL too
    assert len(server.requests) == 1
    assert leftovers(cache) == {path.name, f"{path.name}.json"}


def test_mmengine_takes_urls_from_the_same_place(server, cache, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "saved.pt")
    server.content = (tmp_path / "saved.pt").read_bytes()
    resolve_weights(f"{server.url}/file.pt")
    loaded = CheckpointLoader.load_checkpoint(f"{server.url}/file.pt", map_location="cpu")
    assert loaded["x"] == 1 and len(server.requests) == 1


def test_interrupted_download_is_resumed(server, cache, publish):
    name, server.mode = publish(server), "cut"
    with pytest.raises(DownloadError, match=r"hung up after 150000 of 300000 bytes \(0\.1 of 0\.3"):
        resolve_weights(name)
    assert leftovers(cache) == {f"{NAME}.pt.part", f"{NAME}.pt.part.json"}
    server.mode = "right"
    assert resolve_weights(name).read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=150000-"]
    assert leftovers(cache) == {f"{NAME}.pt", f"{NAME}.pt.json"}


@pytest.mark.parametrize(
    "etag, changed, ranged",
    [('"v1"', False, True), ('"v1"', True, True), (None, False, False), ('W/"v1"', False, False)],
)
def test_url_without_a_hash_is_resumed_where_its_version_is_the_same(
    server, cache, etag, changed, ranged
):
    server.etag, server.mode = etag, "cut"
    words = (
        "continues from there" if ranged else "starts again, as nothing says which version it is"
    )
    with pytest.raises(DownloadError, match=rf"of 0\.3 MB\); another attempt {words}\. By hand"):
        resolve_weights(f"{server.url}/file.pt")
    assert len(leftovers(cache)) == (2 if ranged else 0)
    server.mode = "right"
    if changed:
        server.etag, server.content = '"v2"', ZIP + CONTENT[:3:-1]
    assert resolve_weights(f"{server.url}/file.pt").read_bytes() == server.content
    assert server.requests[1].get("Range") == ("bytes=150000-" if ranged else None)
    assert server.requests[1].get("If-Range") == (etag if ranged else None)


def test_server_without_ranges_starts_anew(server, publish):
    name, server.mode = publish(server), "cut"
    with pytest.raises(DownloadError):
        resolve_weights(name)
    server.mode = "no range"
    assert resolve_weights(name).read_bytes() == CONTENT
    assert "Range" in server.requests[1]


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_part_that_is_whole_or_too_long_starts_anew(server, cache, publish, extra):
    name, server.mode = publish(server), "cut"
    with pytest.raises(DownloadError):
        resolve_weights(name)
    (cache / f"{NAME}.pt.part").write_bytes(CONTENT + extra)
    server.mode = "right"
    assert resolve_weights(name).read_bytes() == CONTENT
    assert [r.get("Range", "") != "" for r in server.requests] == [False, True, False]


def test_part_of_another_url_is_not_continued(server, cache, publish):
    server.mode = "cut"
    with pytest.raises(DownloadError):
        resolve_weights(f"{server.url}/other/{NAME}.pt")
    server.mode = "right"
    assert resolve_weights(publish(server)).read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


def test_wrong_hash(server, cache, publish):
    found, wanted = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    name = publish(server, sha256=wanted)
    with pytest.raises(DownloadError, match=f"sha256 {found} instead of {wanted} and was deleted"):
        resolve_weights(name)
    assert leftovers(cache) == set()


@pytest.mark.parametrize(
    "mode, words, left",
    [
        (404, "the server answers 404 Not Found", 0),
        (500, "the server answers 500", 0),
        (204, "the server answers 204", 0),
        ("cut", "the server hung up after 150000 of 300000 bytes", 2),
        ("mute", "sent nothing for 0.3 s", 0),
        ("stall", "sent nothing for 0.3 s after 150000 of", 2),
        ("trickle", r"sent less than 32 KB/s for 0\.[67] s after", 2),
        ("more", "announced 300000 bytes and sent more", 0),
        ("huge", "announces 953674316.4 MB, which is too much", 0),
        ("no length", "does not say how long", 0),
        ("gzip", "does not say how long", 0),
        ("file:///etc/passwd", "redirects from http: to file:, refused", 0),
        ("ftp://127.0.0.1/x.pt", "redirects from http: to ftp:, refused", 0),
        ("data:text/plain,x", "redirects from http: to data:, refused", 0),
    ],
)
def test_servers_that_fail(server, cache, publish, mode, words, left):
    server.mode = mode
    name = publish(server)
    entry = WEIGHTS[NAME]
    with pytest.raises(DownloadError, match=words) as failure:
        resolve_weights(name, timeout=0.3)
    for fact in (entry.url, entry.sha256, "0.3 MB", f"put it at {cache / entry.file_name}"):
        assert fact in str(failure.value)
    assert "\n" not in str(failure.value) and user_message(failure.value)
    assert len(leftovers(cache)) == left


def test_more_than_the_disk_holds(server, cache):
    server.mode = "huge"
    with pytest.raises(DownloadError, match=r"takes 953674316\.4 MB, and .* has .* MB left"):
        resolve_weights(f"{server.url}/file.pt")
    assert leftovers(cache) == set()


def test_range_that_was_not_asked_for(server, publish):
    name, server.mode = publish(server), "cut"
    with pytest.raises(DownloadError):
        resolve_weights(name)
    server.mode = "shifted"
    with pytest.raises(DownloadError, match="from 150000 on, the server sends 150000 that it call"):
        resolve_weights(name)
    server.mode = "right"
    assert resolve_weights(name).read_bytes() == CONTENT


def test_connection_that_stays_open(server):
    server.mode = "open"
    assert resolve_weights(f"{server.url}/file.pt", timeout=0.3).read_bytes() == CONTENT


def test_a_reserve_of_the_disk_stays_free(server, cache, monkeypatch):
    free = download.RESERVE + len(CONTENT) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DownloadError, match=r"takes 0\.3 MB, and .* has 256\.3 MB left, 256 of wh"):
        resolve_weights(f"{server.url}/file.pt")
    assert leftovers(cache) == set()


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "a..b"])
def test_no_network_says_what_to_fetch_and_where_to_put_it(cache, publish, monkeypatch, host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if host.endswith(".invalid"):  # what a machine without name servers says

        def unknown(*args, **kwargs):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setitem(
        WEIGHTS, NAME, dataclasses.replace(WEIGHTS[NAME], directory=f"http://{host}:{port}")
    )
    with pytest.raises(DownloadError) as failure:
        resolve_weights(f"birder://{NAME}")
    line, entry = str(failure.value), WEIGHTS[NAME]
    assert f"fetch {entry.url} (328.1 MB, sha256 {entry.sha256}) and put it at " in line
    assert line.endswith(f"put it at {cache / entry.file_name}") and "\n" not in line


def test_directory_that_cannot_be_written(server, cache, publish):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where a directory should be")
    with pytest.raises(DownloadError, match="TORCH_HOME moves the directory"):
        resolve_weights(publish(server))


def test_of_many_at_once_one_downloads(server, publish):
    name, found = publish(server), []
    threads = [
        threading.Thread(target=lambda: found.append(resolve_weights(name))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and found[0].read_bytes() == CONTENT
    assert len(server.requests) == 1


# ---- what lies in the cache already


def test_file_put_there_by_hand_is_verified_once(server, cache, publish, monkeypatch):
    name = publish(server)
    cache.mkdir(parents=True)
    (cache / f"{NAME}.pt").write_bytes(CONTENT)
    assert resolve_weights(name) == cache / f"{NAME}.pt"
    hashed = []
    monkeypatch.setattr(lookup, "sha256_of", lambda path: hashed.append(path))
    resolve_weights(name)
    assert not hashed and not server.requests


@pytest.mark.parametrize("by_hand", [True, False])
def test_wrong_file_in_the_cache(server, cache, publish, by_hand):
    name, path = publish(server), cache / f"{NAME}.pt"
    if by_hand:
        cache.mkdir(parents=True)
    else:
        resolve_weights(name)
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, (1, 1))
    with pytest.raises(DownloadError, match=r"another file is at .* instead of .*delete it"):
        resolve_weights(name)
    assert path.exists()  # it may be dear to somebody
    path.unlink()
    assert resolve_weights(name).read_bytes() == CONTENT


def test_two_urls_of_one_file_name(server, cache):
    path = resolve_weights(f"{server.url}/one/file.pt?token=secret")
    with pytest.raises(ValueError, match=r"came from .*/one/file\.pt\?\.\.\., not from .*/two/"):
        resolve_weights(f"{server.url}/two/file.pt")
    assert "secret" not in (cache / "file.pt.json").read_text()
    path.write_bytes(b"put there by hand")  # whatever it is
    assert resolve_weights(f"{server.url}/two/file.pt") == path


# ---- to the end


def test_backbone_loads_by_name(server, tmp_path, publish):
    pytest.importorskip("birder")
    file = write_checkpoint(birder_net(config=SMALL), tmp_path)
    server.content = file.read_bytes()
    cfg = dict(type="Pretrained", checkpoint=publish(server, server.content))
    model = RoPEViT(SMALL, init_cfg=cfg)
    model.init_weights()
    expected = torch.load(file, weights_only=True)["state"]["pos_embedding"]
    assert torch.equal(model.pos_embed, expected)

    detector = torch.nn.Module()
    detector.backbone = model
    detector.data_preprocessor = torch.nn.Module()
    detector.data_preprocessor.mean = detector.data_preprocessor.std = torch.ones(3)
    detector.data_preprocessor._channel_conversion = True
    with pytest.raises(ValueError, match="contradicts the rgb_stats"):
        check_colors(detector)
    assert len(server.requests) == 1
