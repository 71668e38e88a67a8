"""What belongs to one machine goes out of text, what is common knowledge stays."""

import ast
import socket

import pytest
from mmengine.config import Config

from ropevit_mmdet.deploy.redaction import redact

PRIVATE = {
    "/home/anna/coco/": "coco/",
    "/home/anna/coco/annotations/val.json": "val.json",
    "/data": "data",
    "~/runs/a.pth": "a.pth",
    "~anna/runs/a.pth": "a.pth",
    "file:///home/anna/a.pth": "a.pth",
    r"C:\Users\Anna\a.pth": "a.pth",
    r"\\nas\share\a.pth": "a.pth",
    "--out=/home/anna/run 3": "--out=run 3",
    "http://gpu7/weights/a.pth": "a.pth",
    "http://10.0.0.7:8000/a.pth": "a.pth",
    "tcp://node1.cluster.local:29500": "",
    "s3://bucket/a/b.pth": "b.pth",
    "https://me:secret@example.org/a.pth": "https://example.org/a.pth",
    "https://example.org/a.pth?X-Signature=abc": "https://example.org/a.pth",
}
PUBLIC = (
    "birder://rope_vit_reg4_b14",
    "torchvision://resnet50",
    "https://download.openmmlab.com/a/b.pth",
    "data/coco/",
    "./a.pth",
    "a/b/c",
    "and/or",
    "/",
    "",
    "3/4",
    "git+https://example.org/a/b",
)


@pytest.mark.parametrize("old", PRIVATE)
def test_private_strings_are_cut_to_their_last_part(old):
    assert redact(old) == (PRIVATE[old], {old: PRIVATE[old]})


@pytest.mark.parametrize("text", PUBLIC)
def test_public_strings_stay(text):
    assert redact(text) == (text, {})


def test_strings_in_a_config_that_mmengine_printed():
    """The same values as a redacted dictionary, and still a config."""
    values = {
        "data_root": "/home/o'neil/my data/coco/",
        "quoted": 'say "/home/x/y"',
        "nested": {"files": ["/a/b/c.json", "rel/c.json"], "lr": 1e-4, "pair": (1, "~/x")},
        "service": {"api_key": "a1'b2", "access_key_id": "a1b2", "num_tokens": 4},
        "windows": r"C:\Users\Anna\a.pth",
    }
    text, changes = redact(Config(values).pretty_text)
    expected, expected_changes = redact(values)
    assert Config.fromstring(text, ".py").to_dict() == Config(expected).to_dict()
    assert "o'neil" not in text and "Anna" not in text and "/a/b" not in text
    assert "b2" not in f"{text} {changes} {expected_changes}" and text.count("<secret>") == 2
    assert len(changes) == len(expected_changes) == 5
    ast.parse(text)


def test_nested_data_keeps_its_kinds():
    data = {"a": ["/x/y", ("/x/z", 1)], "b": None, "c": 0.5, "/p/q": True}
    assert redact(data)[0] == {"a": ["y", ("z", 1)], "b": None, "c": 0.5, "q": True}


def test_the_name_of_this_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node7")
    assert redact("trained on gpu-node7, rank 0")[0] == "trained on localhost, rank 0"
    assert redact("gpu-node77 my-gpu-node7")[1] == {}
    monkeypatch.setattr(socket, "gethostname", lambda: "model")
    assert redact("model = dict()") == ("model = dict()", {})
