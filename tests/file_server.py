"""An HTTP server on loopback that serves files, also as the Hugging Face Hub does."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files`, content by path; `errors` are statuses by path; `requests` what it got.

    Responses have the headers that `huggingface_hub` asks for. An error may have a hub's code, as
    in `(403, "GatedRepo")`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.errors: dict[str, tuple[int, str]] = {}
        self.requests: list[tuple[str, str]] = []  # method, path
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        content = self._respond()
        self.wfile.write(content)

    def _respond(self) -> bytes:
        """Sends the headers; returns the content to send."""
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        content = self.server.files.get(path, b"")
        default = (200, "") if path in self.server.files else (404, "EntryNotFound")
        status, code = self.server.errors.get(path, default)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", hashlib.sha1(path.encode()).hexdigest())
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        return content

    def log_message(self, *args) -> None:
        pass
