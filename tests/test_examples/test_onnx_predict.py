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
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from PIL import Image
from pycocotools import mask as mask_coding

from ropevit_mmdet._images import read_image
from ropevit_mmdet.apis import Detector
from ropevit_mmdet.deploy.check import Detections, differences
from tests.processes import ROOT, run_python

SCRIPT = ROOT / "examples" / "onnx_predict.py"
_spec = importlib.util.spec_from_file_location("onnx_predict", SCRIPT)
onnx_predict = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(onnx_predict)


def test_onnx_predict_equals_the_package(exported, tmp_path):
    _, config, checkpoint, path = exported
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


def constant_model(path, inputs, outputs, **metadata):
    """A file that returns constants, whatever the images are."""
    helper, types = onnx.helper, {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
    values = [onnx.numpy_helper.from_array(value, name) for name, value in outputs.items()]
    graph = helper.make_graph(
        [helper.make_node("Constant", [], [one.name], value=one) for one in values],
        "constants",
        [helper.make_tensor_value_info("images", *inputs)],
        [
            helper.make_tensor_value_info(name, types[value.dtype], value.shape)
            for name, value in outputs.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fields = dict(part="detector", resize=dict(scale=[20, 20], keep_ratio=False), mean=[0] * 3)
    fields |= dict(std=[1] * 3, channel_order="RGB", class_names=["a", "b"]) | metadata
    for key, value in fields.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(proto, path)
    return str(path)


def test_files_of_version_0_1_0_are_read(tmp_path):
    boxes, scores = np.float32([[2, 4, 10, 20]]), np.float32([0.9])
    outputs = dict(boxes=boxes, scores=scores, labels=np.int64([1]))
    path = constant_model(tmp_path / "a.onnx", (1, [1, 3, None, None]), outputs)
    detector, image = onnx_predict.Detector(path), np.zeros((40, 60, 3), np.uint8)
    found = detector.predict(image)
    np.testing.assert_allclose(found[0], [[6, 8, 30, 40]])
    assert found[1] == scores and found[2] == [1] and found[3] is None


def test_batches_of_one_size_and_masks_in_the_original_image(tmp_path):
    random = np.random.default_rng(0)
    dets = np.zeros((3, 4, 5), np.float32)
    labels = np.full((3, 4), -1)
    masks = random.random((3, 4, 28, 28), dtype=np.float32)
    for i, count in enumerate((2, 0, 1)):
        dets[i, :count, :4] = (2 + i, 4, 10, 17.5)
        dets[i, :count, 4] = 0.9 - 0.1 * np.arange(count)
        labels[i, :count] = np.arange(count)
    outputs = dict(dets=dets, labels=labels, masks=masks)
    inputs = (2, [3, 3, 20, 20])  # uint8: the file normalizes
    metadata = dict(batch=3, normalized_by="file", mask_thr_binary=0.5, size=[20, 20])
    metadata["resize"] = dict(scale=[28, 28], keep_ratio=True)  # not of a file with one size
    path = constant_model(tmp_path / "a.onnx", inputs, outputs, **metadata)
    detector = onnx_predict.Detector(path)
    files = []
    for i, (height, width) in enumerate(((40, 60), (20, 20), (33, 50), (40, 60))):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (width, height)).save(files[-1])
    document, skipped = onnx_predict.predict_files(detector, files, 0.3)
    assert not skipped
    annotations = document["annotations"]
    assert [one["image_id"] for one in annotations] == [1, 1, 3, 4, 4]  # the last batch has one
    for one, (image, row) in zip(annotations, ((0, 0), (0, 1), (2, 0), (0, 0), (0, 1))):
        height, width = one["segmentation"]["size"]
        boxes = torch.from_numpy(dets[image, row, None, :4]) * torch.tensor(
            [width / 20, height / 20] * 2
        )
        mask = torch.from_numpy(masks[image, row])[None, None]
        expected = _do_paste_mask(mask, boxes, height, width, skip_empty=False)[0][0] >= 0.5
        rle = mask_coding.frPyObjects(one["segmentation"], height, width)
        actual = torch.from_numpy(mask_coding.decode(rle)).bool()
        assert (actual != expected).sum() <= 1 and expected.sum() > 20
        assert one["area"] == int(actual.sum())
    with pytest.raises(
        ValueError, match="this onnxruntime has no NoProvider .only .*CPUExecutionProvider"
    ):
        onnx_predict.Detector(path, ["NoProvider"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((300, 500), (134, 224)),
        ((448, 300), (224, 150)),  # by 2: OpenCV averages
        ((97, 61), (1333, 800)),
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


def test_onnx_predict_reports_errors_in_one_line(exported, tmp_path, capsys):
    image, bad = (tmp_path / f"{name}.png" for name in ("image", "bad"))
    Image.new("RGB", (8, 8)).save(image)
    bad.write_bytes(image.read_bytes()[:20])
    proto = onnx.load(exported.onnx)
    next(field for field in proto.metadata_props if field.key == "resize").value = "null"
    onnx.save(proto, tmp_path / "more.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    for file, path, message in (
        (tmp_path / "more.onnx", image, "does more than resize"),
        (bad, image, "bad.png cannot be loaded: "),
        (tmp_path / "gone.onnx", image, "gone.onnx cannot be loaded: "),
        (tmp_path / "bare.onnx", image, "is not a file of `ropevit export --part detector`"),
        (exported.onnx, tmp_path / "none.png", "No such file"),
        (exported.onnx, bad, "bad.png cannot be read: "),
    ):
        with pytest.raises(SystemExit) as stop:
            onnx_predict.main([str(file), str(path)])
        line = capsys.readouterr().err
        assert stop.value.code == 2 and line.startswith("error: ") and message in line


def test_onnx_predict_skips_and_names_images_that_it_cannot_use(exported, tmp_path, capsys):
    broken = {"text.jpg": "cannot be read", "thin.png": "is too thin: 400 x 2 pixels"}
    (tmp_path / "text.jpg").write_text("no image")
    for name, size in (("thin.png", (400, 2)), ("good.png", (60, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stop:
        onnx_predict.main([str(exported.onnx), str(tmp_path), "--out", str(out)])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken) and all(line.startswith("skipped: ") for line in lines)
    for name, message in broken.items():
        assert any(name in line and message in line for line in lines)
    images = json.loads(out.read_text())["images"]
    assert [(one["id"], Path(one["file_name"]).name) for one in images] == [(1, "good.png")]
