"""Pages of a server in the place of checkpoints: none is kept, so that another run asks again."""

import struct

import pytest

from ropevit_mmdet.weights import lookup
from ropevit_mmdet.weights.download import DownloadError
from ropevit_mmdet.weights.lookup import resolve_weights
from tests.malformed_files import saved

CONTENT = saved({})
PAGES = [b"", b"<!DOCTYPE html><html>", b"<style>{}", b"version https://git-lfs.github.com/spec/v1"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_not_kept(server, cache, page):
    server.content = page
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"begins with b'.*, is no checkpoint and was del"):
            resolve_weights(f"{server.url}/file.pt")
        assert {path.name for path in cache.iterdir()} == {"file.pt.lock"}
    server.content = CONTENT
    assert resolve_weights(f"{server.url}/file.pt").read_bytes() == CONTENT
    assert len(server.requests) == 3


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_was_kept_is_replaced(server, cache, page):
    """Downloaded before they were refused; what somebody put there is left to them."""
    url = f"{server.url}/file.pt"
    path = resolve_weights(url)
    path.write_bytes(page)
    assert resolve_weights(url).read_bytes() == page
    lookup._note(lookup._source(url))
    assert resolve_weights(url).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content",
    [CONTENT, saved({}, _use_new_zipfile_serialization=False), struct.pack("<Q", 2) + b"{}"],
)
def test_checkpoints_of_every_kind_are_kept(server, cache, content):
    server.content = content
    for _ in range(2):
        assert resolve_weights(f"{server.url}/file").read_bytes() == content
    assert len(server.requests) == 1
