"""`ropevit plan`: the schedule of a config, and what it takes."""

import json

import pytest

from ropevit_mmdet.apis.benchmark.plan import (
    plan,
    schedule,
    text,
    training_dtype,
    training_side,
)
from ropevit_mmdet.engine.config import load_config
from tests.commands import fails, ropevit
from tests.test_apis.test_benchmark.test_measure import quick  # noqa: F401  (a fixture)
from tests.tiny_coco import write_tiny

R50 = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco"


def row(batch, seconds, optimizer, peak):
    parts = {"optimizer": dict(median=optimizer)}
    return dict(batch=batch, median=seconds, parts=parts, peak_bytes=peak, weight_bytes=1000)


ROWS = [row(1, 3.5, 0.5, 700), row(2, 5.5, 0.5, 1200)]  # 1 s and 200 bytes without an image


@pytest.mark.parametrize(
    ("config", "images", "expected", "side"),
    [
        ("ropevit_maskrcnn", None, (184375, 64), 896),
        ("ropevit_maskrcnn_1xb2_12e", None, (22125, 64), 896),
        ("shapes_retinanet", None, (2250, 2), 224),
        ("ropevit_eomt", None, (88692, 16), 640),
        (R50, 117266, (12 * 7330, 16), 924),  # 1333 x 800 holds images of 1067 x 800
    ],
)
def test_schedules_of_configs(config, images, expected, side):
    loaded = load_config(config)
    assert schedule(loaded, images) == expected
    assert training_side(loaded) == side
    assert training_dtype(loaded) == "float32"
    for dtype, used in ((None, "float16"), ("bfloat16", "bfloat16")):
        loaded.optim_wrapper.update(type="mmengine.AmpOptimWrapper", dtype=dtype)
        assert training_dtype(loaded) == used


def test_epochs_count_the_images_of_the_dataset(tmp_path):
    loop = {"train_cfg.max_epochs": 5, "train_cfg.max_iters": None}
    config = load_config(write_tiny(tmp_path, num_images=5), loop)
    assert schedule(config) == (5 * 3, 2)  # 3 batches of 2 for 5 images


def test_the_largest_divisor_that_fits_is_used():
    result = plan(100, 12, ROWS, free_bytes=4000)
    # 95% of 4,000 less 1,000 of weights and 200: 5.2 images of 500 bytes; 4 divides 12
    assert (result["largest_batch"], result["batch"], result["passes"]) == (5, 4, 3)
    assert result["iterations"] == 300 and result["peak_bytes"] == pytest.approx(3200)
    seconds = 1 + 4 * 2 + 0.5 / 3  # the optimizer runs in every third pass
    assert result["seconds_per_iteration"] == pytest.approx(seconds)
    assert result["hours"] == pytest.approx(300 * seconds / 3600)
    lines = text("x", result)
    assert "4 per pass (up to 5 fit), 3 passes" in lines and "= 0.764 hours" in lines


def test_gpus_share_a_step():
    result = plan(100, 12, ROWS, free_bytes=10**6, gpus=3)
    assert (result["batch"], result["passes"], result["iterations"]) == (4, 1, 100)


def test_one_image_fits_or_none():
    """All memory and time of the only step that succeeded count for its images."""
    result = plan(100, 12, ROWS[:1], free_bytes=2000)
    assert (result["batch"], result["passes"], result["image_bytes"]) == (1, 12, 700)
    result = plan(100, 12, ROWS, free_bytes=1500)
    assert result["batch"] == 0 and "not a single image fits" in text("x", result)


@pytest.mark.parametrize("peaks", [(100, 90), (100, 400)], ids=["constant", "steep"])
def test_noise_makes_no_negative_memory(peaks):
    rows = [row(1, 3.0, 0.5, peaks[0]), row(2, 5.0, 0.5, peaks[1])]
    result = plan(100, 12, rows, 10**6)
    assert result["step_bytes"] >= 0 and result["image_bytes"] >= 0 and result["batch"] == 12


def test_the_command(quick, tmp_path, capsys):  # noqa: F811
    argv = ["--size", "112", "--runs", "1", "--device", "cpu", "--json", tmp_path / "p.json"]
    ropevit("plan", "shapes_retinanet", *argv, "--cfg-options", "train_cfg.max_iters=90")
    report = json.loads((tmp_path / "p.json").read_text())
    assert [one["batch"] for one in report["rows"]] == [1, 2]
    assert report["plan"]["iterations"] == 90 and report["plan"]["hours"] > 0
    assert "shapes_retinanet, 112 px: 90 optimizer steps" in capsys.readouterr().out


def test_a_config_without_a_schedule(tmp_path, capsys):
    assert "images of an epoch cannot be counted" in fails(capsys, "plan", R50, "--device", "cpu")
    wrong = ("--images", "16", "--gpus", "3", "--device", "cpu")
    assert "--gpus 3 does not divide the 16 images" in fails(capsys, "plan", R50, *wrong)
    config = write_tiny(tmp_path)
    options = ["--cfg-options", "train_cfg.max_iters=None"]
    assert "no train_cfg with max_iters" in fails(capsys, "plan", config, *options)
