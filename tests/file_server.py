"""An HTTP server on loopback that serves and takes files, also as the Hugging Face Hub does."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files`, content by path; `errors` are statuses by path; `requests` what it got.

    Responses have the headers that `huggingface_hub` asks for. An error may have a hub's code, as
    in `(403, "GatedRepo")`. What huggingface_hub commits to a model's main branch is served.
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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        answer = {} if path in self.server.errors else self._take(path, body)
        self.server.files[path] = json.dumps(answer).encode()
        self.wfile.write(self._respond())

    def _take(self, path: str, body: bytes) -> dict:
        """The hub's answers while a repository is created and a folder is uploaded."""
        if "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    name = line["value"]["path"]
                    self.server.files[f"/{repository}/resolve/main/{name}"] = content
            return {"commitUrl": f"{self.server.url}/{repository}/commit/abc", "commitOid": "abc"}
        sent = json.loads(body)
        if "/preupload/" in path:
            modes = dict(uploadMode="regular", shouldIgnore=False)
            return {"files": [{"path": one["path"], **modes} for one in sent["files"]]}
        owner, name = sent.get("organization"), sent.get("name")
        return {"url": f"{self.server.url}/{owner}/{name}", "warnings": [], "errors": []}

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
        revision = "/".join(path.split("/")[:5])  # of /OWNER/REPO/resolve/REVISION/FILE
        self.send_header("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest())
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        return content

    def log_message(self, *args) -> None:
        pass
