"""Browsing a dataset: images are those that the pipeline packs, boxes where it moved them."""

import json

import numpy as np
import pytest
from PIL import Image

from ropevit_mmdet.apis.browse import FedDataset, file_name, spread_indices
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.visualization.overlays import class_color
from tests.test_cli.test_tools import fails, load_tool
from tests.tiny_coco import write_tiny

browse_dataset = load_tool("browse_dataset")
GREEN = (40, 200, 90)  # no two channels alike


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The tiny data, one color, an object at the left of each 64 x 48 or 64 x 56 image."""
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.setenv("WAYLAND_DISPLAY", "")
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
    config = load_config(path)
    config.filename_of_test = str(path)
    return config


def overlays(config, split="train", number=4, **settings):
    data = FedDataset(config, split, **settings)
    return list(data.images(spread_indices(len(data), number)))


def at(overlay, x, y, size=(64, 48)):
    """The color of a pixel of the image; overlays of small images are enlarged."""
    factor = overlay.shape[1] // size[0]
    return overlay[int((y + 0.5) * factor), int((x + 0.5) * factor)].astype(int)


def filled(color):
    return np.round(0.6 * np.array(GREEN) + 0.4 * np.array(color))


def test_images_and_masks_stand_where_the_pipeline_packs_them(config):
    for image in overlays(config)[1::2]:  # the second has the first label
        assert image.path.endswith(".png") and image.overlay.shape == (480, 640, 3)
        np.testing.assert_allclose(at(image.overlay, 10, 20), filled(class_color(0)), atol=3)
        np.testing.assert_allclose(at(image.overlay, 53, 20), GREEN, atol=1)

    flip = dict(type="RandomFlip", prob=1.0)
    config.train_dataloader.dataset.pipeline.insert(3, flip)
    for image in overlays(config)[1::2]:
        np.testing.assert_allclose(at(image.overlay, 53, 20), filled(class_color(0)), atol=3)
        np.testing.assert_allclose(at(image.overlay, 10, 20), GREEN, atol=1)
    for image in overlays(config, "val")[1::2]:  # not augmented
        np.testing.assert_allclose(at(image.overlay, 10, 20), filled(class_color(0)), atol=3)


def test_ignored_regions_are_shown_as_such(config):
    data = FedDataset(config)
    assert data.names == ("dark", "light", "ignored")
    first = next(data.images([0]))
    corner = at(first.overlay, 60, 50)  # covered by the crowd's mask
    np.testing.assert_allclose(corner, filled(class_color(2)), atol=3)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_batches_are_seen_behind_the_preprocessor(config, bgr_to_rgb):
    """Colors come back through its mean and std; padding is what its zeros stand for."""
    preprocessor = config.model.data_preprocessor
    preprocessor.update(bgr_to_rgb=bgr_to_rgb, mean=[10, 20, 30], std=[2, 4, 8])
    pad = dict(type="BatchFixedSizePad", size=(64, 96), img_pad_value=0)
    preprocessor.batch_augments = [pad]
    second = overlays(config, batch=True)[1].overlay
    assert second.shape[:2] == (64 * 7, 96 * 7)  # 96 enlarged to at least 640
    np.testing.assert_allclose(at(second, 10, 20, (96, 64)), filled(class_color(0)), atol=3)
    np.testing.assert_allclose(at(second, 50, 20, (96, 64)), GREEN, atol=1)
    mean = [10, 20, 30] if bgr_to_rgb else [30, 20, 10]
    np.testing.assert_allclose(at(second, 90, 60, (96, 64)), mean, atol=1)
    assert overlays(config, "val", batch=True)[1].overlay.shape[:2] != second.shape[:2]


def test_augmentation_comes_from_the_seed(config):
    crop = dict(type="RandomCrop", crop_size=(30, 40), allow_negative_crop=True)
    config.train_dataloader.dataset.pipeline.insert(3, crop)
    data = FedDataset(config)
    once, again, other = (
        np.concatenate([one.overlay.ravel() for one in data.images(range(4), seed=seed)])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert len(once) != len(other) or (once != other).any()


def test_wrappers_of_data_sets(config):
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type="RepeatDataset", times=3, dataset=inner)
    found = overlays(config, number=None)
    assert [one.index for one in found] == list(range(12))
    assert len({file_name(one) for one in found}) == 12

    inner.pipeline = inner.pipeline[:3]
    inner.pipeline[2].with_mask = False  # mmdet's mosaic is of boxes alone
    mosaic = [dict(type="Mosaic", img_scale=(64, 64), pad_val=0.0), dict(type="PackDetInputs")]
    config.train_dataloader.dataset = dict(
        type="MultiImageMixDataset", dataset=inner, pipeline=mosaic
    )
    (first, *_) = overlays(config)
    assert first.overlay.shape == (640, 640, 3)  # twice 64 pixels, enlarged by 5


def test_objects_of_a_test_pipeline_stand_where_the_model_sees_them(config):
    """It loads them behind Resize, in pixels of the file, as mmdet's do to be evaluated."""
    steps = config.val_dataloader.dataset.pipeline
    assert [step["type"] for step in steps][1:3] == ["Resize", "LoadAnnotations"]
    steps[1].scale = (128, 128)
    for batch in (False, True):
        image = overlays(config, "val", batch=batch)[1]
        scale = image.overlay.shape[1] / 64  # of the file's 64 pixels
        for x, y, color in ((10, 20, filled(class_color(0))), (20, 28, GREEN)):
            found = image.overlay[int(y * scale), int(x * scale)]
            np.testing.assert_allclose(found, color, atol=3)


def test_what_is_missing_is_an_error(config):
    with pytest.raises(ValueError, match="no test2_dataloader"):
        FedDataset(config, "test2")
    config.val_dataloader = None
    with pytest.raises(ValueError, match="no val_dataloader"):
        FedDataset(config, "val")
    config.train_dataloader.dataset.ann_file = "gone.json"
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        FedDataset(config)


def test_indices_are_spread():
    assert spread_indices(10, 4) == [0, 3, 6, 9]
    assert spread_indices(3, 16) == spread_indices(3, None) == [0, 1, 2]
    assert spread_indices(5, 1) == [0]


def test_the_tool_writes_images_and_a_sheet(config, tmp_path, capsys):
    path, out = config.filename_of_test, tmp_path / "out"
    browse_dataset.main([path, "--not-show", "--output-dir", str(out), "--num", "3"])
    names = sorted(file.name for file in out.iterdir())
    assert names == ["000000_1.png", "000002_3.png", "000003_4.png", "contact_sheet.png"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 480
    assert "3 of the 4 images of the train split" in capsys.readouterr().out
    for argv, said in ((["--not-show"], "leaves nothing to see"), ([], "no screen here")):
        with pytest.raises(SystemExit):
            browse_dataset.main([path, *argv])
        assert said in capsys.readouterr().err
    argv = ["--not-show", "--output-dir", str(tmp_path / "no")]
    option = "train_dataloader.dataset.ann_file=gone.json"
    assert "gone.json" in fails(capsys, browse_dataset.main, path, *argv, "--cfg-options", option)
    assert not (tmp_path / "no").exists()
    (tmp_path / "no").touch()
    assert "no is a file" in fails(capsys, browse_dataset.main, "gone.py", *argv)


def test_the_tool_says_what_is_not_on_the_sheet(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(browse_dataset, "ON_SHEET", 2)
    argv = [config.filename_of_test, "--not-show", "--output-dir", str(tmp_path / "out")]
    for num, said in (("3", "the first 2 on one sheet"), ("2", "all of them on one sheet")):
        browse_dataset.main([*argv, "--num", num])
        assert said in capsys.readouterr().out
