"""Requests: where redirects may lead, who gets a password, and what messages keep to themselves."""

import base64
import io

import pytest
import torch

from ropevit_mmdet.weights import request
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.download import DownloadError
from ropevit_mmdet.weights.lookup import resolve_weights
from tests.file_server import FileServer

CONTENT = b"PK\3\4" + bytes(range(256)) * 100  # as a checkpoint begins

pytestmark = pytest.mark.usefixtures("cache")


def test_redirect_within_http(server, cache):
    server.mode = f"{server.url}/elsewhere/other.pt"
    assert resolve_weights(f"{server.url}/file.pt") == cache / "file.pt"
    assert (cache / "file.pt").read_bytes() == CONTENT


def test_no_redirect_from_https_to_http():
    with pytest.raises(DownloadError, match="from https: to http:, refused"):
        request._target("https://host/file.pt", "http://host/file.pt")
    assert request._target("https://host/a/b.pt", "/c d.pt") == "https://host/c%20d.pt"


@pytest.mark.parametrize(
    "url", ["http://me:secret@127.0.0.1:x/file.pt", "http://127.0.0.1:1/file.pt?token= secret"]
)
def test_urls_that_cannot_be_asked_for_keep_their_secrets(url):
    with pytest.raises(DownloadError, match="the URL is invalid") as caught:
        resolve_weights(url)
    assert "secret" not in str(caught.value)


def test_a_detector_by_url_is_named_without_its_secrets(server):
    server.content = b"PK\3\4no checkpoint"
    with pytest.raises(ValueError) as caught:
        read_detector_checkpoint(f"{server.url}/file.pt?token=secret".replace("//", "//me:secret@"))
    assert "secret" not in str(caught.value)
    torch.save({}, saved := io.BytesIO())
    server.content = saved.getvalue()
    with pytest.raises(ValueError, match=r"/other\.pt\?\.\.\. holds no weights of a detector"):
        read_detector_checkpoint(f"{server.url}/other.pt?token=secret")


def test_a_name_and_a_password_in_the_url_are_given_to_its_server_alone(server):
    other = FileServer(CONTENT)
    try:
        server.mode = f"{server.url}/elsewhere.pt"
        path = resolve_weights(f"{server.url}/one.pt".replace("//", "//me:a%2Fb@"))
        server.mode = f"{other.url}/elsewhere.pt"
        resolve_weights(f"{server.url}/two.pt".replace("//", "//me:a%2Fb@"))
    finally:
        other.close()
    login = "Basic " + base64.b64encode(b"me:a/b").decode()
    assert path.read_bytes() == CONTENT
    assert [asked.get("Authorization") for asked in server.requests] == [login] * 3
    assert [asked.get("Authorization") for asked in other.requests] == [None]
