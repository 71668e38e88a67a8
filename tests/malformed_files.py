"""Files that are not checkpoints, and checkpoints that contain code."""

import io
import pickle
import zipfile

import torch


class Payload:
    """Runs `function(*arguments)` where it is unpickled without a check."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WRONG = {
    "empty": b"",
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "JSON": b'{"state_dict": {"a": [1, 2, 3]}}',
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zip": archive({"a.txt": "hello"}),
    "zip with torch's names": archive({"a/data.pkl": pickle.dumps(3), "a/version": "3\n"}),
    "zeros": bytes(5000),
    "a pickled list": pickle.dumps([1, 2], protocol=2),
    "saved number": saved(5),
    "saved numbers": saved(dict(state_dict=dict(a=5))),
    "weights of a CNN": saved(dict(state={"conv.weight": torch.ones(2)})),
}
