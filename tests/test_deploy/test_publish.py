"""A published checkpoint is small and clean, and detects what the original does."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ropevit_mmdet.apis.predict import Predictor
from ropevit_mmdet.compat.reading import read_torch_file
from ropevit_mmdet.deploy.publish import publish
from ropevit_mmdet.engine.config import load_config
from tests.malformed_files import Payload
from tests.test_cli.test_tools import fails, load_tool, train
from tests.tiny_coco import write_tiny

tool = load_tool("publish_checkpoint")
MOMENTUM = 0.3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Config and work dir of a run of two iterations with EMA and a checkpoint of each."""
    directory = tmp_path_factory.mktemp("run with EMA")
    config = write_tiny(directory)
    text = config.read_text() + f"custom_hooks = [dict(type='EMAHook', momentum={MOMENTUM})]\n"
    config.write_text(text)
    options = ["default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=-1"]
    train.main([str(config), "--work-dir", str(directory / "run"), "--cfg-options", *options])
    return config, directory / "run"


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    return publish(run[1] / "iter_2.pth", tmp_path_factory.mktemp("out") / "detector.pth")


def test_the_name_has_the_hash_of_the_file(published):
    digest = hashlib.sha256(published.path.read_bytes()).hexdigest()
    assert published.path.name == f"detector-{digest[:8]}.pth"
    assert [file.name for file in published.path.parent.iterdir()] == [published.path.name]


def test_twice_the_same_file_and_directories_take_the_name_of_the_source(run, published, tmp_path):
    again = publish(run[1] / "iter_2.pth", tmp_path / "new" / "directory")
    digest = published.path.stem.rpartition("-")[2]
    assert again.path == tmp_path / "new" / "directory" / f"iter_2-{digest}.pth"
    assert again.path.read_bytes() == published.path.read_bytes()


def test_only_weights_and_meta_are_left(run, published):
    before = torch.load(run[1] / "iter_2.pth", weights_only=False)
    torch.serialization.clear_safe_globals()  # it loads without our allow-list
    try:
        after = torch.load(published.path, weights_only=True)
    finally:
        from ropevit_mmdet.compat import checkpoint

        checkpoint.install()
    assert after.keys() == {"meta", "state_dict"}
    assert set(published.removed) == before.keys() - after.keys() >= {"optimizer", "message_hub"}
    assert published.size_before > 1.5 * published.size
    assert after["meta"]["dataset_meta"]["classes"] == ("dark", "light")
    assert after["meta"]["iter"] == 2 and after["meta"]["mmengine_version"].startswith("0.")
    assert after["meta"].keys() < before["meta"].keys()


def test_no_path_of_the_author_is_in_the_file(run, published):
    directory = run[0].parent
    assert str(directory).encode() in (run[1] / "iter_2.pth").read_bytes()
    assert str(directory).encode() not in published.path.read_bytes()
    assert b"run with EMA" not in published.path.read_bytes()
    assert published.redacted[f"{directory}/data"] == "data"
    assert published.redacted[f"{directory}/data/annotations.json"] == "annotations.json"


def test_ema_and_raw_weights_are_the_right_ones(run, published, tmp_path):
    """EMAHook swaps the two when it saves. After two steps the average is by hand (1-m) w1 + m w2,
    where w1 and w2 are the raw weights.
    """
    raw = [publish(run[1] / f"iter_{step}.pth", tmp_path, raw=True) for step in (1, 2)]
    assert [done.weights for done in (published, *raw)] == ["EMA", "raw", "raw"]
    average, first, second = (
        read_torch_file(done.path)["state_dict"] for done in (published, *raw)
    )
    assert average.keys() == first.keys() == second.keys()
    moved = 0
    for name, value in average.items():
        if name.endswith(("weight", "bias")) and "bn" not in name and "downsample" not in name:
            assert_close(value, (1 - MOMENTUM) * first[name] + MOMENTUM * second[name])
            moved += not torch.equal(first[name], second[name])
    assert moved > 10


def test_the_published_detector_detects_what_the_original_does(run, published):
    config = load_config(run[0])
    image = np.random.default_rng(0).integers(0, 256, (56, 64, 3), dtype=np.uint8)
    before, after = (
        Predictor(config, str(path), "cpu").predict([image], score_thr=0.0)
        for path in (run[1] / "iter_2.pth", published.path)
    )
    assert len(after[0]) == 10 and after == before


def test_raw_needs_ema(run, tmp_path):
    checkpoint = torch.load(run[1] / "iter_2.pth", weights_only=False)
    del checkpoint["ema_state_dict"]
    torch.save(checkpoint, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="holds no EMA"):
        publish(tmp_path / "plain.pth", tmp_path, raw=True)
    assert publish(tmp_path / "plain.pth", tmp_path).weights == "only"


def test_views_of_a_large_storage_are_cut_out(tmp_path):
    large = torch.arange(1_000_000.0)
    weights = {"backbone.w": large[:10], "bbox_head.w": large[10:20].view(2, 5)}
    torch.save({"state_dict": weights}, tmp_path / "views.pth")
    done = publish(tmp_path / "views.pth", tmp_path / "small.pth")
    assert done.size < 10_000 < 4_000_000 < done.size_before
    assert_close(read_torch_file(done.path)["state_dict"], weights)


def test_what_is_no_detector_is_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ones = torch.ones(3)
    torch.save({"state": {"norm.weight": ones}, "task": "x"}, "birder.pth")
    torch.save({"backbone.w": ones, "head.fc.weight": ones}, "classifier.pth")
    torch.save({"backbone.w": ones, "bbox_head.w": ones * torch.nan}, "nan.pth")
    torch.save({"backbone.w": Payload(open, "ran.txt", "w")}, "code.pth")
    Path("cut.pth").write_bytes(b"PK\x03\x04 truncated")
    said = {
        "gone.pth": "does not exist",
        "birder.pth": "of a backbone alone",
        "classifier.pth": "holds no detector, only backbone and head",
        "nan.pth": "holds NaN or infinite values in 1 of 2 tensors: bbox_head.w",
        "code.pth": "could run code",
        "cut.pth": "truncated",
        "https://example.org/a.pth": "is a URL",
    }
    for name, words in said.items():
        assert words in fails(capsys, tool.main, name, "out/")
    assert not Path("out").exists() and not Path("ran.txt").exists()


def test_the_tool_says_what_it_did(run, tmp_path, capsys):
    tool.main([str(run[1] / "iter_2.pth"), str(tmp_path / "mine.pth")])
    text = capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    assert f"wrote    {file}" in text and "averaged ones (EMA)" in text
    assert "removed  " in text and "optimizer" in text and "ema_state_dict" in text
    assert "cleaned  " in text and "-> 'annotations.json'" in text
