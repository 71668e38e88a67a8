"""Servers that do not mean well: an error in bounded time, and nothing left in the cache."""

import contextlib
import threading
import time
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from ropevit_mmdet.weights.download import DownloadError
from ropevit_mmdet.weights.lookup import resolve_weights


def forever(sock, text, pause=0.0):
    while True:
        sock.sendall(text)
        time.sleep(pause)


def drip(sock, text, pause):
    for byte in text:
        sock.sendall(bytes([byte]))
        time.sleep(pause)
    forever(sock, b"x", pause)


OK = b"HTTP/1.1 200 OK\r\n"
SAID = {
    "a redirect with a body without end": "the server redirects more than 10 times",
    "a redirect by another header": "the server answers 302 Found",
    "a refusal with a body without end": "the server answers 404 Gone",
    "a redirect to a file": "redirects from http: to file:, refused",
    "a redirect to nowhere": "redirects to no URL",
    "colors and titles": "the server answers 404 [31mred ]0;title 1m. By hand",
    "a page": "begins with b'<html>', is no checkpoint and was deleted",
    "nothing": "begins with b'', is no checkpoint and was deleted",
}
MALFORMED = {
    "headers that drip": lambda sock: drip(sock, OK + b"X-Slow: ", 0.05),
    "headers without end": lambda sock: forever(sock, b"X: y\r\n", 0.001),
    "a header line without end": lambda sock: (sock.sendall(OK + b"X: "), forever(sock, b"y" * 99)),
    "an endless number of goes": lambda sock: forever(sock, b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body without end or length": lambda sock: (
        sock.sendall(OK + b"Connection: close\r\n\r\n"),
        forever(sock, bytes(1000)),
    ),
    "chunks without end": lambda sock: (
        sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        forever(sock, b"1\r\nx\r\n"),
    ),
    "a body longer than its length": lambda sock: (
        sock.sendall(OK + b"Content-Length: 5\r\nConnection: close\r\n\r\n"),
        forever(sock, bytes(1000)),
    ),
    "a negative length": lambda sock: sock.sendall(OK + b"Content-Length: -5\r\n\r\nhello"),
    "a length that is none": lambda sock: sock.sendall(OK + b"Content-Length: five\r\n\r\nhello"),
    "a redirect to itself": lambda sock: sock.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /file.pt\r\nContent-Length: 0\r\n\r\n"
    ),
    "redirects without end": lambda sock: sock.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nContent-Length: 0\r\n\r\n" % time.monotonic_ns()
    ),
    "a redirect to a file": lambda sock: sock.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: FILE:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
    ),
    "a redirect to nowhere": lambda sock: sock.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: //[\r\nContent-Length: 0\r\n\r\n"
    ),
    "a redirect with a body without end": lambda sock: (
        sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /next\r\n\r\n"),
        forever(sock, bytes(100_000)),
    ),
    "a redirect by another header": lambda sock: sock.sendall(
        b"HTTP/1.1 302 Found\r\nURI: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
    ),
    "a refusal with a body without end": lambda sock: (
        sock.sendall(b"HTTP/1.1 404 Gone\r\n\r\n"),
        forever(sock, bytes(100_000)),
    ),
    "colors and titles": lambda sock: sock.sendall(
        b"HTTP/1.1 404 \x1b[31mred\x1b]0;title\x07\x9b1m\r\nContent-Length: 0\r\n\r\n"
    ),
    "a reason without end": lambda sock: sock.sendall(
        b"HTTP/1.1 500 " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
    "a page": lambda sock: sock.sendall(OK + b"Content-Length: 6\r\n\r\n<html>"),
    "a page of control codes": lambda sock: sock.sendall(OK + b"Content-Length: 4\r\n\r\n\x1b[1m"),
    "nothing": lambda sock: sock.sendall(OK + b"Content-Length: 0\r\n\r\n"),
    "no HTTP": lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a hang-up": lambda sock: None,
}


@pytest.fixture
def malformed():
    """Starts a server that answers every request in one of the ways above; returns its URL."""
    servers = []

    def start(answer):
        class Handler(BaseRequestHandler):
            def handle(self):
                self.request.recv(65536)
                with contextlib.suppress(OSError):  # the other side has had enough
                    answer(self.request)

        server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_servers(name, malformed, cache):
    url, start = malformed(MALFORMED[name]), time.monotonic()
    with pytest.raises(DownloadError, match=r"download of file\.pt failed: ") as caught:
        resolve_weights(f"{url}/file.pt", timeout=0.3)
    assert time.monotonic() - start < 5
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert SAID.get(name, "") in str(caught.value)
    left = {path.name for path in cache.iterdir()} - {"file.pt.lock"}
    assert not left, left


@pytest.mark.parametrize(
    "end", ["a%2f..%2fb.pt", "..%2f..%2fb.pt", "%2e%2e", "b.pt%00.txt", "b.pt;x=/../c", "%5c..%5cb"]
)
def test_encoded_slashes_name_no_directory(end, malformed, cache):
    body = OK + b"Content-Length: 9\r\n\r\nPK\3\4hello"
    try:
        path = resolve_weights(f"{malformed(lambda sock: sock.sendall(body))}/a/{end}")
    except ValueError as error:
        assert "does not end in the name of a file" in str(error)
    else:
        assert path.parent == cache and path.read_bytes() == b"PK\3\4hello"
    assert {entry.parent for entry in Path(cache.parent.parent).rglob("*") if entry.is_file()} <= {
        cache
    }


@pytest.mark.parametrize("pause", [0.05, 0])
def test_nothing_is_left_behind_of_headers_without_end(pause, malformed, cache):
    """Neither a thread of ours, nor one of the server, which has noticed the end."""
    url = malformed(lambda sock: forever(sock, OK if pause else b"HTTP/1.1 100 Go\r\n\r\n", pause))
    before = threading.active_count()
    with pytest.raises(DownloadError, match=r"has not finished its answer's headers after 1\.2 s"):
        resolve_weights(f"{url}/file.pt", timeout=0.3)
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
