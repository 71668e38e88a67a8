"""An HTTP server on loopback that serves one file, rightly or in one of many wrong ways."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` under every path. ``mode`` says how; ``requests`` are the headers it got.

    Modes: 'right'; 'no range'; 'shifted' (another range than asked for); 'cut' (hangs up half
    way); 'stall' (silent half way); 'mute' (silent at once); 'trickle' (a byte at a time); 'more'
    (than announced); 'open' (says that it closes and does not); 'no length'; 'huge'; 'gzip';
    a number (that status); anything else: redirects there.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.mode: str | int = "right"
        self.etag: str | None = None
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, mode = self.server, self.server.mode
        server.requests.append(dict(self.headers))
        if mode == "mute":
            server.released.wait(5)
            return
        if isinstance(mode, int):
            self.send_error(mode)
            return
        if ":" in mode:
            self.send_response(302)
            self.send_header("Location", mode)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if mode.startswith(server.url):
                server.mode = "right"
            return
        body = self._start(server, mode)
        if mode in ("cut", "stall"):
            body = body[: len(body) // 2]
        for start in range(0, len(body), 1 if mode == "trickle" else len(body)):
            self.wfile.write(body[start:][: 1 if mode == "trickle" else None])
            if mode == "trickle" and server.released.wait(0.02):
                break
        if mode == "more":
            self.wfile.write(b"more")
        self.wfile.flush()
        if mode in ("stall", "open"):
            server.released.wait(5)
        self.close_connection = True

    def _start(self, server: FileServer, mode: str) -> bytes:
        """Sends the headers; returns the body that they announce."""
        content, asked = server.content, self.headers.get("Range")
        fits = self.headers.get("If-Range") in (None, server.etag)
        offset = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and fits else 0
        if mode == "no range":
            offset = 0
        if offset and offset >= len(content):
            self.send_error(416)
            return b""
        body = content[offset:]
        self.send_response(206 if offset else 200)
        if mode != "no length":
            self.send_header("Content-Length", str(10**15 if mode == "huge" else len(body)))
        if offset:
            first = offset + (mode == "shifted")
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if mode == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Connection", "close")
        self.end_headers()
        return body

    def log_message(self, *args) -> None:
        pass
