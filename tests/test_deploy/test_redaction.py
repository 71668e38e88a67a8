"""Redaction removes absolute paths and secrets, and keeps everything else."""

import pytest
from mmengine.config import Config

from ropevit_mmdet.deploy._redaction import redact


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/home/anna/coco/", "coco/"),
        ("/home/anna/coco/annotations/val.json", "val.json"),
        ("~anna/runs/a.pth", "a.pth"),
        ("file:///home/anna/a.pth", "a.pth"),
        (r"C:\Users\Anna\a.pth", "a.pth"),
        (r"\\nas\share\a.pth", "a.pth"),
        ("--out=/home/anna/run 3", "--out=run 3"),
        ("https://me:secret@example.org/a.pth", "https://example.org/a.pth"),
        ("https://example.org/a.pth?X-Signature=abc", "https://example.org/a.pth"),
        ("s3://key:secret@bucket/a.pth", "s3://bucket/a.pth"),
    ],
)
def test_redact_changes_private_strings(old, new):
    assert redact(old) == (new, {old: new})


@pytest.mark.parametrize(
    "text",
    [
        "birder://rope_vit_reg4_b14",
        "torchvision://resnet50",
        "https://download.openmmlab.com/a/b.pth",
        "git+https://example.org/a/b",
        *("data/coco/", "./a.pth", "a/b/c", "and/or", "/", "", "3/4", "me@example.org"),
    ],
)
def test_redact_keeps_public_strings(text):
    assert redact(text) == (text, {})


def test_redact_keeps_a_printed_config_valid():
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
