"""What strangers put into files: other formats, code, sizes that lie, bits that turned."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import torch
from PIL import Image


class Payload:
    """Runs `function(*arguments)` where it is unpickled without a check."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def image(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, kind)
    return buffer.getvalue()


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def saved(content, **kwargs):
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


HERE = "HERE"  # in a content, for `saved_with`


def saved_with(operations, content, **kwargs):
    """A file of torch.save with other operations where its pickle has the text HERE."""
    whole, text = saved(content, **kwargs), b"X\4\0\0\0HERE"  # BINUNICODE, a length
    if not zipfile.is_zipfile(io.BytesIO(whole)):
        assert whole.count(text) == 1
        return whole.replace(text, operations)
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    assert members[name].count(text) == 1
    return archive(members | {name: members[name].replace(text, operations)})


PROTOCOL = b"\x80\x02"
WRONG = {
    "empty": b"",
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "PNG": image("png"),
    "JPEG": image("jpeg"),
    "text": "Gewichte für Straßenbilder\n".encode() * 400,
    "JSON": b'{"state_dict": {"a": [1, 2, 3]}}',
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zip": archive({"a.txt": "hello"}),
    "zip with other places": archive({"../../evil.txt": "x", "/etc/data.pkl": pickle.dumps({})}),
    "zip with a torch's names": archive({"a/data.pkl": pickle.dumps(3), "a/version": "3\n"}),
    "zip with names too long": archive({"a/" * 20000: "x"}),
    "a bomb": archive({"a/data.pkl": bytes(10**7), "a/version": "3"}, zipfile.ZIP_DEFLATED),
    "gzip": b"\x1f\x8b" + bytes(200),
    "zeros": bytes(5000),
    "tar": b"archive/data.pkl".ljust(257, b"\0") + b"ustar" + bytes(500),
    "a number": pickle.dumps(5, protocol=2),
    "a list": pickle.dumps([1, 2], protocol=2),
    "lists 200,000 deep": PROTOCOL + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a text of 2 GB": PROTOCOL + b"T" + struct.pack("<i", 2**31 - 1) + b"x",
    "a number of 2 GB": PROTOCOL + b"\x8b" + struct.pack("<i", 2**31 - 1),
    "place 4 billion of the memo": PROTOCOL + b"}r" + struct.pack("<I", 2**32 - 1) + b".",
    "place 500 million of the memo": PROTOCOL + b"}r" + struct.pack("<I", 5 * 10**8) + b".",
    "saved number": saved(5),
    "saved numbers": saved(dict(state_dict=dict(a=5))),
    "saved under numbers": saved(dict(state={1: torch.ones(2)})),
    "state that is none": saved(dict(state_dict=[torch.ones(2)])),
}


def write_lies(directory):
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    row = json.dumps(tensor)
    lies = {
        "a deep": b'{"a":' * 3_000_000 + b"1" + b"}" * 3_000_000,
        "b deep metadata": json.dumps({"__metadata__": {"config": "[" * 10**7}}).encode(),
        "c huge shape": json.dumps(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ).encode(),
        "d overlapping": json.dumps({"a": tensor, "b": tensor}).encode(),
        "e 15 MB": ("{" + ",".join(f'"w{i:06}": {row}' for i in range(200_000)) + "}").encode(),
        "f 100 MB": ("{" + ",".join(f'"w{i:07}": {row}' for i in range(1_400_000)) + "}").encode(),
    }
    for name, header in lies.items():
        header += b" " * (-len(header) % 8)
        (directory / f"{name}.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(4)
        )


def with_a_flipped_bit(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the flips are where the structure is: in the first and the last 4 kB."""
    flipped = bytearray(content)
    ends = [*range(4096), *range(len(content) - 4096, len(content))]
    whole = random.random() < 0.5 or len(content) < 8192
    offset = int(random.integers(len(content)) if whole else random.choice(ends))
    flipped[offset] ^= 1 << int(random.integers(8))
    return bytes(flipped)
