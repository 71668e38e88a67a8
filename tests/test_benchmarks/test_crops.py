"""Crops for classification show their object at the scale of the images."""

from PIL import Image

from benchmarks.crops import crop_objects
from tests.tiny_coco import CLASSES, write_tiny


def test_crops_show_every_object_once(tmp_path):
    write_tiny(tmp_path, num_images=6)
    data, root = tmp_path / "data", tmp_path / "classes"
    crop_objects(data / "images", data / "annotations.json", root, side=24)
    assert {directory.name for directory in root.iterdir()} == set(CLASSES)
    for name, red in zip(CLASSES, (20, 220), strict=True):
        files = sorted((root / name).iterdir())
        assert len(files) == 3
        for file in files:
            with Image.open(file) as crop:
                assert crop.size == (24, 24) and crop.getpixel((12, 12))[0] == red
    before = {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
    crop_objects(data / "images", data / "annotations.json", root, side=24)
    assert before == {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
