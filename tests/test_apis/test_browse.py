"""Browsing: images as the pipeline packs them, with boxes and masks where it moved them."""

import json

import numpy as np
import pytest
from PIL import Image

from ropevit_mmdet.apis.browse import PipelineOutput, spread_indices
from ropevit_mmdet.engine.config import load_config
from tests.commands import fails, ropevit
from tests.tiny_coco import write_python_style, write_tiny

GREEN = (40, 200, 90)  # distinct channels


@pytest.fixture
def path(tmp_path):
    """The tiny data in one color, an object at the left of each 64 x 48 or 64 x 56 image."""
    path = write_tiny(tmp_path)
    for file in (tmp_path / "data" / "images").iterdir():
        Image.new("RGB", Image.open(file).size, GREEN).save(file)
    annotations = tmp_path / "data" / "annotations.json"
    content = json.loads(annotations.read_text())
    for one in content["annotations"]:
        one.update(bbox=[4, 8, 12, 16], area=192, segmentation=[[4, 8, 16, 8, 16, 24, 4, 24]])
    crowd = dict(content["annotations"][0], id=99, iscrowd=1, bbox=[48, 30, 8, 8])
    crowd["segmentation"] = {"size": [56, 64], "counts": [0, 56 * 64]}
    content["annotations"].append(crowd)
    annotations.write_text(json.dumps(content))
    path.write_text(path.read_text().replace("with_bbox=True", "with_bbox=True, with_mask=True"))
    return path


@pytest.fixture
def config(path):
    return load_config(path)


def rendered(config, split="train", number=4, **settings):
    data = PipelineOutput(config, split, **settings)
    return list(data.render(spread_indices(len(data), number)))


def at(overlay, x, y, size=(64, 48)):
    """The color of a pixel of the image; overlays of small images are enlarged."""
    factor = overlay.shape[1] // size[0]
    return overlay[int((y + 0.5) * factor), int((x + 0.5) * factor)].astype(int)


def assert_covered(color):
    """By a mask, not the color of the image."""
    assert np.abs(color - GREEN).max() > 10


def test_masks_are_where_the_pipeline_packs_them(config):
    for image in rendered(config)[1::2]:  # the second has the first label
        assert image.path.endswith(".png") and image.overlay.shape == (720, 960, 3)
        assert_covered(at(image.overlay, 10, 20))
        np.testing.assert_allclose(at(image.overlay, 53, 20), GREEN, atol=1)
    first = rendered(config)[0].overlay
    assert_covered(at(first, 60, 50))  # by the mask of the crowd, an ignored region

    flip = dict(type="RandomFlip", prob=1.0)
    config.train_dataloader.dataset.pipeline.insert(3, flip)
    for image in rendered(config)[1::2]:
        assert_covered(at(image.overlay, 53, 20))
        np.testing.assert_allclose(at(image.overlay, 10, 20), GREEN, atol=1)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_batches_are_denormalized_after_the_preprocessor(config, bgr_to_rgb):
    """Padding has the color that zeros stand for."""
    preprocessor = config.model.data_preprocessor
    preprocessor.update(bgr_to_rgb=bgr_to_rgb, mean=[10, 20, 30], std=[2, 4, 8])
    pad = dict(type="BatchFixedSizePad", size=(64, 96), img_pad_value=0)
    preprocessor.batch_augments = [pad]
    second = rendered(config, batch=True)[1].overlay
    assert second.shape[:2] == (640, 960)
    assert_covered(at(second, 10, 20, (96, 64)))
    np.testing.assert_allclose(at(second, 50, 20, (96, 64)), GREEN, atol=1)
    mean = [10, 20, 30] if bgr_to_rgb else [30, 20, 10]
    np.testing.assert_allclose(at(second, 90, 60, (96, 64)), mean, atol=1)
    assert rendered(config, "val", batch=True)[1].overlay.shape[:2] != second.shape[:2]


def test_python_style_configs_and_dataset_wrappers_are_rendered(path, tmp_path, config):
    style = load_config(write_python_style(path, tmp_path / "style.py"))
    for split in ("train", "val"):
        (one,), (other,) = rendered(config, split, 1), rendered(style, split, 1)
        np.testing.assert_array_equal(one.overlay, other.overlay)
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type="RepeatDataset", times=3, dataset=inner)
    images = rendered(config, number=4)
    assert [one.index for one in images] == [0, 4, 7, 11]
    assert [one.file_name for one in images][-1] == "000011_4.png"


@pytest.mark.parametrize("batch", [False, True])
def test_objects_of_a_test_pipeline_are_resized_with_the_image(config, batch):
    """mmdet's test pipelines load annotations after Resize, in pixels of the file."""
    steps = config.val_dataloader.dataset.pipeline
    assert [step["type"] for step in steps][1:3] == ["Resize", "LoadAnnotations"]
    steps[1].scale = (128, 128)
    image = rendered(config, "val", batch=batch)[1]
    scale = image.overlay.shape[1] / 64  # of the file's 64 pixels
    inside, outside = (
        image.overlay[int(y * scale), int(x * scale)] for x, y in [(10, 20), (20, 28)]
    )
    assert_covered(inside.astype(int))
    np.testing.assert_allclose(outside, GREEN, atol=1)


def test_the_command_writes_images_and_a_sheet(path, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    argv = ["browse", path, "--output-dir", out]
    ropevit(*argv, "--num", "3")
    names = sorted(file.name for file in out.iterdir())
    assert names == ["000000_1.png", "000002_3.png", "000003_4.png", "contact_sheet.png"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 480
    output = capsys.readouterr().out
    assert "3 of the 4 images of the train split" in output and "3 on one sheet" in output
    monkeypatch.setattr("ropevit_cli.browse.MAX_ON_SHEET", 2)
    ropevit(*argv, "--num", "0")
    output = capsys.readouterr().out
    assert "4 of the 4 images" in output and "2 on one sheet" in output


def test_the_command_reports_errors_before_it_writes(path, tmp_path, capsys):
    argv = ["--output-dir", tmp_path / "no"]
    option = "train_dataloader.dataset.ann_file=gone.json"
    assert "gone.json" in fails(capsys, "browse", path, *argv, "--cfg-options", option)
    option = "val_dataloader=None"
    argv += ["--split", "val", "--cfg-options", option]
    assert "no val_dataloader" in fails(capsys, "browse", path, *argv)
    assert not (tmp_path / "no").exists()
