"""`onnx_predict.py` needs no PyTorch and detects what the package detects."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from ropevit_mmdet._images import read_image
from ropevit_mmdet.apis import Detector
from ropevit_mmdet.deploy.check import Detections, differences
from tests.exportable_models import exported_detector
from tests.processes import ROOT, run_python
from tests.test_apis.test_predict import broken_files

SCRIPT = ROOT / "examples" / "onnx_predict.py"
_spec = importlib.util.spec_from_file_location("onnx_predict", SCRIPT)
onnx_predict = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(onnx_predict)


def test_onnx_predict_equals_the_package(tmp_path):
    _, config, checkpoint, path = exported_detector()
    random, files = np.random.default_rng(0), []
    for name, height, width in (("a.png", 168, 224), ("b.png", 333, 250), ("c.jpg", 60, 90)):
        coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        files.append(tmp_path / name)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    blocked = ("torch", "torchvision", "mmdet", "mmengine", "mmcv", "cv2", "ropevit_mmdet", "onnx")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked}))\n"  # importing them fails
        f"sys.argv[0] = 'onnx_predict.py'; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    out = tmp_path / "detections.json"
    argv = ("-c", code, path, tmp_path, "--score-thr", "0.1", "--out", out)
    done = run_python(*argv, path=Path(onnxruntime.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert [image["file_name"] for image in document["images"]] == [str(file) for file in files]
    assert document["categories"][4] == {"id": 5, "name": "ring"}

    detector = Detector(checkpoint, config=config, device="cpu")
    for image_id, file in enumerate(files, start=1):
        expected = detector(file, score_thr=0.1).pred_instances
        expected = Detections(expected.bboxes, expected.scores, expected.labels)
        actual = onnx_predict.Detector(str(path)).predict(onnx_predict.read_image(file))
        actual = Detections(*(torch.from_numpy(part[actual[1] >= 0.1]) for part in actual[:3]))
        boxes, scores, _ = differences(expected, actual)
        assert boxes < 1e-3 and scores < 1e-5  # pixels of the image
        rows = [one for one in document["annotations"] if one["image_id"] == image_id]
        assert len(rows) == len(actual.scores) > 20
        for row, box, score, label in zip(rows, *actual[:3]):
            corners = (*box[:2], *(box[2:] - box[:2]))
            np.testing.assert_allclose(row["bbox"], corners, atol=0.0051)
            assert row["category_id"] == label + 1 and abs(row["score"] - score) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((300, 500), (134, 224)),
        ((448, 300), (224, 150)),  # by 2: OpenCV averages
        ((160, 90), (224, 126)),
        ((97, 61), (1333, 800)),
        ((2, 5), (89, 224)),
        ((1, 1), (3, 2)),
    ],
)
def test_resize_equals_opencv(old, new):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert (onnx_predict.resize(image, *new) == expected).all()


def test_new_size_equals_mmdet():
    from mmdet.datasets.transforms import Resize

    for scale, keep in (((1333, 800), True), ((224, 224), True), ((300, 200), False)):
        for height, width in ((480, 640), (640, 427), (30, 900), (223, 225)):
            image = np.zeros((height, width, 3), np.uint8)
            expected = Resize(scale=scale, keep_ratio=keep)({"img": image})["img"].shape[:2]
            assert onnx_predict.new_size(height, width, scale=scale, keep_ratio=keep) == expected


def test_read_image_applies_exif_orientation(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    for orientation in range(1, 10):
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.png", exif=exif)
    image.save(tmp_path / "corrupted.png", exif=b"garbage!")
    files = onnx_predict.find_images([tmp_path])
    assert len(files) == 10
    for file in files:
        np.testing.assert_array_equal(onnx_predict.read_image(file), read_image(file))
    assert onnx_predict.read_image(tmp_path / "6.png").shape == (9, 6, 3)


def test_onnx_predict_reports_errors_in_one_line(tmp_path, capsys):
    exported = exported_detector().onnx
    image, bad = (tmp_path / f"{name}.png" for name in ("image", "bad"))
    Image.new("RGB", (8, 8)).save(image)
    bad.write_bytes(image.read_bytes()[:20])
    proto = onnx.load(exported)
    next(field for field in proto.metadata_props if field.key == "resize").value = "null"
    onnx.save(proto, tmp_path / "more.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    for file, path, message in (
        (tmp_path / "more.onnx", image, "does more than resize"),
        (tmp_path / "bare.onnx", image, "is not a file of `ropevit export --part detector`"),
        (exported, tmp_path / "none.png", "No such file"),
        (exported, bad, "bad.png cannot be read: "),
    ):
        with pytest.raises(SystemExit) as stop:
            onnx_predict.main([str(file), str(path)])
        line = capsys.readouterr().err
        assert stop.value.code == 2 and line.startswith("error: ") and message in line


def test_onnx_predict_skips_and_names_images_that_it_cannot_use(tmp_path, capsys):
    broken = broken_files(tmp_path)
    Image.new("RGB", (60, 40)).save(tmp_path / "good.png")
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stop:
        onnx_predict.main([str(exported_detector().onnx), str(tmp_path), "--out", str(out)])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken) and all(line.startswith("skipped: ") for line in lines)
    for name, message in broken.items():
        message = "is too thin: 400 x 2 pixels" if name == "thin.png" else message.split(":")[0]
        assert any(name in line and message in line for line in lines)
    images = json.loads(out.read_text())["images"]
    assert [(one["id"], Path(one["file_name"]).name) for one in images] == [(1, "good.png")]
