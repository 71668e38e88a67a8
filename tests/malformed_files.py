"""Files that are not checkpoints, and checkpoints that contain code."""

import gzip
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


KNOWN = {  # content -> what the message says that it is
    "empty": (b"", "is empty, .* truncated"),
    "web page": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "is a web page"),
    "index": (b'{"weight_map": {"a": "model-00001.safetensors"}}', "is JSON text"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "is a pointer of git-lfs .*: run `git lfs pull`",
    ),
    "onnx": (b"\x08\x0e\x12\x03abc:3\n\x0c\n\x01x\x12\x01y", "is an ONNX model"),
    "gzip": (gzip.compress(bytes(50)), "is compressed"),
    "zip": (archive({"a.txt": "hello"}), "is a zip file, but not a checkpoint"),
    "pt2": (
        archive({"w/archive_format": "pt2", "w/models/model.json": "{}"}),
        "is an exported program",
    ),
    "TorchScript": (
        archive({"w/data.pkl": pickle.dumps(3), "w/code/a.py": "", "w/constants.pkl": ""}),
        "is a TorchScript archive",
    ),
}
WRONG = {name: content for name, (content, _) in KNOWN.items()} | {
    "zip with torch's names": archive({"a/data.pkl": pickle.dumps(3), "a/version": "3\n"}),
    "zeros": bytes(5000),
    "a pickled list": pickle.dumps([1, 2], protocol=2),
    "saved number": saved(5),
    "saved numbers": saved(dict(state_dict=dict(a=5))),
    "numbered tensors": saved(dict(state_dict={1: torch.ones(2)})),
    "weights of a CNN": saved(dict(state={"conv.weight": torch.ones(2)})),
}
