"""A published checkpoint is small and clean, and detects what the original does."""

import hashlib

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.testing import assert_close

from ropevit_mmdet.apis.predict import Detector
from ropevit_mmdet.deploy import publish_checkpoint
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.exportable_models import run_command
from tests.tiny_coco import write_tiny

MOMENTUM = 0.3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config and work dir of a run of two iterations with EMA and a checkpoint of each."""
    directory = tmp_path_factory.mktemp("run with EMA")
    path = write_tiny(directory)
    config = load_config(path, work_dir=str(directory / "run"))
    config.custom_hooks = [dict(type="EMAHook", momentum=MOMENTUM)]
    config.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    Runner.from_cfg(config).train()
    return path, directory / "run"


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    return publish_checkpoint(
        trained[1] / "iter_2.pth", tmp_path_factory.mktemp("out") / "detector.pth"
    )


def test_name_has_the_hash_of_the_file(trained, published, tmp_path):
    digest = hashlib.sha256(published.path.read_bytes()).hexdigest()[:8]
    assert published.path.name == f"detector-{digest}.pth"
    assert list(published.path.parent.iterdir()) == [published.path]
    again = publish_checkpoint(trained[1] / "iter_2.pth", tmp_path / "new")
    assert again.path == tmp_path / "new" / f"iter_2-{digest}.pth"
    assert again.path.read_bytes() == published.path.read_bytes()


def test_only_weights_and_meta_are_kept(trained, published):
    before = torch.load(trained[1] / "iter_2.pth", weights_only=False)
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # the file loads without our allow-list
    try:
        after = torch.load(published.path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert after.keys() == {"meta", "state_dict"}
    assert set(published.removed) == before.keys() - after.keys() >= {"optimizer", "message_hub"}
    assert published.size_before > 1.5 * published.size
    assert after["meta"]["dataset_meta"]["classes"] == ("dark", "light")
    assert after["meta"]["iter"] == 2 and after["meta"].keys() < before["meta"].keys()


def test_no_path_is_kept(trained, published):
    directory = trained[0].parent
    assert str(directory).encode() in (trained[1] / "iter_2.pth").read_bytes()
    assert b"run with EMA" not in published.path.read_bytes()
    assert published.redacted[f"{directory}/data"] == "data"
    assert published.redacted[f"{directory}/data/annotations.json"] == "annotations.json"


def test_ema_and_raw_weights(trained, published, tmp_path):
    """EMAHook swaps the two when it saves. After two steps the average is (1-m) w1 + m w2, where w1
    and w2 are the raw weights.
    """
    raw = [
        publish_checkpoint(trained[1] / f"iter_{step}.pth", tmp_path, raw=True) for step in (1, 2)
    ]
    assert [done.weights for done in (published, *raw)] == ["EMA", "raw", "raw"]
    average, first, second = (
        torch.load(done.path, weights_only=True)["state_dict"] for done in (published, *raw)
    )
    assert average.keys() == first.keys() == second.keys()
    changed = 0
    for name, value in average.items():
        if name.endswith(("weight", "bias")) and "bn" not in name and "downsample" not in name:
            assert_close(value, (1 - MOMENTUM) * first[name] + MOMENTUM * second[name])
            changed += not torch.equal(first[name], second[name])
    assert changed > 10


def test_published_detector_detects_the_same(trained, published):
    config = load_config(trained[0])
    image = np.random.default_rng(0).integers(0, 256, (56, 64, 3), dtype=np.uint8)
    (before,), (after,) = (
        Detector(config, str(path), "cpu").predict([image], score_thr=0.0)
        for path in (trained[1] / "iter_2.pth", published.path)
    )
    assert len(after) == 10
    for key in ("bboxes", "labels", "scores"):
        assert torch.equal(after[key], before[key])


def test_views_of_a_large_storage_are_copied(tmp_path):
    large = torch.arange(1_000_000.0)
    weights = {"backbone.w": large[:10], "bbox_head.w": large[10:20].view(2, 5)}
    torch.save({"state_dict": weights}, tmp_path / "views.pth")
    done = publish_checkpoint(tmp_path / "views.pth", tmp_path / "small.pth")
    assert done.size < 10_000 < 4_000_000 < done.size_before and done.weights == "only"
    assert_close(torch.load(done.path, weights_only=True)["state_dict"], weights)


@pytest.mark.parametrize(
    ("weights", "raw", "message"),
    [
        (dict(backbone=1.0, head=1.0), False, "contains no detector, only backbone, head"),
        (dict(backbone=1.0, bbox_head=1.0), True, "contains no EMA"),
        (dict(backbone=1.0, bbox_head=float("nan")), False, "bbox_head.w"),
    ],
)
def test_unsuitable_checkpoints(weights, raw, message, tmp_path):
    weights = {f"{name}.w": torch.full((3,), value) for name, value in weights.items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        publish_checkpoint(tmp_path / "a.pth", tmp_path / "out", raw=raw)
    assert not (tmp_path / "out").exists()


def test_raw_weights_of_another_averaging_are_refused(tmp_path):
    weights = {"backbone.w": torch.ones(2), "bbox_head.w": torch.ones(2)}
    torch.save({"state_dict": weights, "ema_state_dict": weights}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="is not that of mmengine's EMAHook"):
        publish_checkpoint(tmp_path / "a.pth", tmp_path / "out", raw=True)


def test_command_prints_what_was_done(trained, tmp_path, capsys):
    run_command("publish", trained[1] / "iter_2.pth", tmp_path / "mine.pth")
    text = capsys.readouterr().out
    assert "averaged ones (EMA)" in text and "ema_state_dict" in text
    assert "-> 'annotations.json'" in text
