"""Browsing: images as the pipeline packs them, with boxes and masks where it moved them."""

import json

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from ropevit_mmdet.apis import browse
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
    """Overlays by name."""
    data = browse.PipelineOutput(config, split, **settings)
    return dict(data.render(browse.spread_indices(len(data), number)))


def second(config, *args, **settings):
    """The second image, which has the first label."""
    return list(rendered(config, *args, **settings).values())[1]


def at(overlay, x, y, size=(64, 48)):
    """The color of a pixel of the image; overlays of small images are enlarged."""
    factor = overlay.shape[1] // size[0]
    return overlay[int((y + 0.5) * factor), int((x + 0.5) * factor)].astype(int)


def assert_covered(color):
    """By a mask, not the color of the image."""
    assert np.abs(color - GREEN).max() > 10


def test_masks_are_where_the_pipeline_packs_them(config):
    overlay = second(config)
    assert overlay.shape == (720, 960, 3)
    assert_covered(at(overlay, 10, 20))
    np.testing.assert_allclose(at(overlay, 53, 20), GREEN, atol=1)
    first = rendered(config)["000000_1.png"]
    assert_covered(at(first, 60, 50))  # by the mask of the crowd, an ignored region

    flip = dict(type="RandomFlip", prob=1.0)
    config.train_dataloader.dataset.pipeline.insert(3, flip)
    assert_covered(at(second(config), 53, 20))
    np.testing.assert_allclose(at(second(config), 10, 20), GREEN, atol=1)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_batches_are_denormalized_after_the_preprocessor(config, bgr_to_rgb):
    """Padding has the color that zeros stand for."""
    preprocessor = config.model.data_preprocessor
    preprocessor.update(bgr_to_rgb=bgr_to_rgb, mean=[10, 20, 30], std=[2, 4, 8])
    pad = dict(type="BatchFixedSizePad", size=(64, 96), img_pad_value=0)
    preprocessor.batch_augments = [pad]
    overlay = second(config, batch=True)
    assert overlay.shape[:2] == (640, 960)
    assert_covered(at(overlay, 10, 20, (96, 64)))
    np.testing.assert_allclose(at(overlay, 50, 20, (96, 64)), GREEN, atol=1)
    mean = [10, 20, 30] if bgr_to_rgb else [30, 20, 10]
    np.testing.assert_allclose(at(overlay, 90, 60, (96, 64)), mean, atol=1)
    assert second(config, "val", batch=True).shape[:2] != overlay.shape[:2]


def test_python_style_configs_and_dataset_wrappers_are_rendered(path, tmp_path, config):
    style = load_config(write_python_style(path, tmp_path / "style.py"))
    for split in ("train", "val"):
        np.testing.assert_array_equal(second(config, split), second(style, split))
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type="RepeatDataset", times=3, dataset=inner)
    assert [*rendered(config)] == ["000000_1.png", "000004_1.png", "000007_4.png", "000011_4.png"]


@pytest.mark.parametrize("batch", [False, True])
def test_objects_of_a_test_pipeline_are_resized_with_the_image(config, batch):
    """mmdet's test pipelines load annotations after Resize, in pixels of the file."""
    steps = config.val_dataloader.dataset.pipeline
    assert [step["type"] for step in steps][1:3] == ["Resize", "LoadAnnotations"]
    steps[1].scale = (128, 128)
    overlay = second(config, "val", batch=batch)
    scale = overlay.shape[1] / 64  # of the file's 64 pixels
    inside, outside = (overlay[int(y * scale), int(x * scale)] for x, y in [(10, 20), (20, 28)])
    assert_covered(inside.astype(int))
    np.testing.assert_allclose(outside, GREEN, atol=1)


@pytest.mark.parametrize("name", ["mmdet.LoadPanopticAnnotations", "LoadAnnotations"])
def test_all_annotations_are_loaded_before_resize(name):
    names = ["LoadImageFromFile", "Resize", "Pad", name, "PackDetInputs"]
    inner = ConfigDict(type="CocoDataset", pipeline=[dict(type=one) for one in names])
    browse._load_annotations_first(ConfigDict(type="RepeatDataset", dataset=inner))
    order = [step.type for step in inner.pipeline]
    assert order == ["LoadImageFromFile", name, "Resize", "Pad", "PackDetInputs"]


def test_the_command_writes_images_and_a_sheet(path, tmp_path, capsys):
    out = tmp_path / "out"
    ropevit("browse", path, "--output-dir", out, "--num", "3")
    names = sorted(file.name for file in out.iterdir())
    assert names == ["000000_1.png", "000002_3.png", "000003_4.png", "contact_sheet.png"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 480
    output = capsys.readouterr().out
    assert "3 of the 4 images of the train split" in output and "3 on one sheet" in output


def test_the_command_reports_errors_before_it_writes(path, tmp_path, capsys):
    argv = ["browse", path, "--output-dir", tmp_path / "no", "--split", "val", "--cfg-options"]
    gone = "val_dataloader.dataset.ann_file=gone.json"
    for option, message in ((gone, "gone.json"), ("val_dataloader=None", "no val_dataloader")):
        assert message in fails(capsys, *argv, option)
    assert not (tmp_path / "no").exists()
