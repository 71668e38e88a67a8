"""Export: the tool, its files, and the predictor that stands alone."""

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
from ropevit_mmdet.apis.predict import Predictor
from ropevit_mmdet.deploy import check, write
from ropevit_mmdet.deploy.check import Detections, check_detections, differences
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.engine.config import build_detector, load_config
from tests.processes import ROOT, run_python
from tests.test_cli.test_tools import fails, load_tool
from tests.test_deploy.test_graph import SMALL_ARCH, WINDOWED, Encoder, loud, small_retinanet
from tests.tiny_coco import write_tiny

export, onnx_predict = load_tool("export"), load_tool("onnx_predict")

CONFIG = ROOT / "configs" / "shapes_retinanet.py"
# Half the blocks, one of them global, and few channels: translating takes time per operator.
SMALLER = {
    "model.backbone.arch.num_layers": 2,
    "model.backbone.arch.hidden_dim": 48,
    "model.neck.in_channels": 48,
    "model.backbone.global_attn_indices": [1],
    "model.bbox_head.stacked_convs": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Config, checkpoint and exported file of a detector, and what the tool said."""
    directory = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    model = loud(build_detector(load_config(CONFIG, SMALLER)))
    checkpoint, out = directory / "detector.pth", directory / "detector.onnx"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "say", said.append)
        export.main([str(CONFIG), str(checkpoint), str(out), *options()])
    return checkpoint, out, said, model


def options(**more) -> list[str]:
    values = {**SMALLER, **more}
    return ["--cfg-options", *(f"{key}={value}".replace(" ", "") for key, value in values.items())]


def test_the_tool_checks_three_sizes_that_are_no_square(made):
    _, out, said, _ = made
    lines = [line for line in said if line.startswith("checked")]
    assert len(lines) == 3
    for line, size in zip(lines, ("224 x 112", "140 x 196", "78 x 157")):
        assert size in line and "50 detections" in line
    assert [file.name for file in out.parent.iterdir() if "onnx" in file.name] == [out.name]


def test_the_file_computes_the_same_at_sizes_it_was_not_checked_at(made):
    _, out, _, model = made
    run = write.onnx_runner(out.read_bytes())
    sizes = [(168, 224), (29, 33), (112, 112), (113, 391), (1, 1)]
    assert len(list(check_detections(model, run, sizes))) == len(sizes)
    nothing = run(torch.zeros(1, 3, 40, 40), 2.0)
    assert [tuple(output.shape) for output in nothing] == [(0, 4), (0,), (0,)]


def test_patch_14_tiled_with_global_blocks_in_onnx():
    model = small_retinanet()
    program = write.trace(DynamicDetector(model), write._example(model), write.shortest_side(model))
    run = write.onnx_runner(write.onnx_bytes(program, list(Detections._fields), {}))
    sizes = [*check.check_sizes(model), (112, 168), (61, 30)]
    assert len(list(check_detections(model, run, sizes))) == len(sizes)
    model.bbox_head.test_cfg.score_thr = 0.9999  # nothing is found: compared without a threshold
    lines = list(check_detections(model, run, sizes[:1]))
    assert "100 detections" in lines[0] and lines[0].endswith("with the score threshold set to 0")


@pytest.mark.parametrize(
    "neck",
    [
        dict(scale_factors=(1,), num_outs=2, add_extra_convs="on_output"),
        pytest.param(dict(out_strides=(4, 8, 16, 32, 64)), marks=pytest.mark.slow),
    ],
)
def test_features_to_onnx_and_to_torch_export(neck):
    model = Encoder(dict(WINDOWED, arch={**SMALL_ARCH, "num_layers": 2}), neck)
    shortest = write.shortest_side(model)
    assert shortest == model.neck.own_strides[-1] + 1
    program = write.trace(DynamicFeatures(model).eval(), write._example(model), shortest)
    sizes = [*check.check_sizes(model), (112, 168), (57, 60), (300, 63)]
    names = [f"level{i}" for i in range(len(model.neck.strides))]
    larger = [size for size in sizes if min(size) >= shortest]
    runs = (
        (write.onnx_runner(write.onnx_bytes(program, names, {})), sizes),
        (write.torch_runner(write.torch_bytes(program, {"part": '"features"'})), larger),
    )
    for run, sizes in runs:
        assert len(list(check.check_features(model, run, sizes))) == len(sizes) > 3


def test_what_stands_in_the_file(made):
    _, out, _, _ = made
    proto = onnx.load(out)
    facts = {field.key: json.loads(field.value) for field in proto.metadata_props}
    assert facts.pop("made_by").startswith("ropevit_mmdet 0.")
    assert facts == {
        "config": "shapes_retinanet.py",
        "part": "detector",
        "model": "RetinaNet",
        "patch_size": 7,
        "resize": {"scale": [224, 224], "keep_ratio": True},
        "channel_order": "RGB",
        "mean": [127.5, 127.5, 127.5],
        "std": [64.0, 64.0, 64.0],
        "pad_size_divisor": 28,
        "pad_value": 0,
        "class_names": ["circle", "square", "triangle", "star", "ring"],
        "strides": [7, 14, 28],
        "score_thr": 0.05,
        "iou_threshold": 0.5,
        "max_per_img": 50,
    }
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "images": [1, 3, "height", "width"],
        "boxes": ["detections", 4],
        "scores": ["detections"],
        "labels": ["detections"],
    }
    assert str(ROOT).encode() not in out.read_bytes()
    onnx.checker.check_model(proto, full_check=True)


def test_the_predictor_stands_alone_and_finds_the_same(made, tmp_path):
    checkpoint, out, _, model = made
    random, files = np.random.default_rng(0), []
    for name, height, width in (("a.png", 168, 224), ("b.png", 333, 250), ("c.jpg", 60, 90)):
        coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        files.append(tmp_path / name)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    blocked = ("torch", "torchvision", "mmdet", "mmengine", "mmcv", "cv2", "ropevit_mmdet", "onnx")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked}))\n"  # importing them fails
        f"sys.argv[0] = 'onnx_predict.py'; runpy.run_path({str(ROOT / 'tools/onnx_predict.py')!r}, "
        "run_name='__main__')"
    )
    written = tmp_path / "found.json"
    argv = ("-c", code, out, tmp_path, "--score-thr", "0.1", "--out", written)
    done = run_python(*argv, path=Path(onnxruntime.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    assert [image["file_name"] for image in found["images"]] == [str(file) for file in files]
    assert found["categories"][4] == {"id": 5, "name": "ring"}

    ours = Predictor(load_config(CONFIG, SMALLER), str(checkpoint), "cpu")
    for image_id, file in enumerate(files, start=1):
        (expected,) = ours.predict([read_image(file)], score_thr=0.1)
        expected = zip(*((one.box, one.score, one.label) for one in expected))
        expected = Detections(*map(torch.tensor, expected))
        exact = onnx_predict.Detector(str(out)).predict(onnx_predict.read_image(file))
        exact = Detections(*(torch.from_numpy(part[exact[1] >= 0.1]) for part in exact))
        boxes, scores = differences(expected, exact, model.bbox_head.test_cfg)
        assert boxes < 1e-3 and scores < 1e-5  # pixels of the image
        rows = [one for one in found["annotations"] if one["image_id"] == image_id]
        assert len(rows) == len(exact.scores) > 20
        for row, box, score, label in zip(rows, *exact):
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
def test_resizing_is_opencvs(old, new):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert (onnx_predict.resized(image, *new) == expected).all()


def test_images_are_turned_as_the_package_turns_them(tmp_path):
    """By EXIF data alone, never by XMP; damaged data is upright."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>6</tiff:Orientation>'
    image.save(tmp_path / "xmp.jpg", xmp=xmp)
    for orientation in range(1, 10):
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.png", exif=exif)
    whole = exif.tobytes()
    for number, data in enumerate((b"garbage!", b"II*\0", whole[:16], whole[:-5], whole[6:10])):
        image.save(tmp_path / f"damaged {number}.png", exif=data, dpi=(72, 72))
        image.save(tmp_path / f"damaged {number}.jpg", exif=b"Exif\0\0" + data, dpi=(72, 72))
    (tmp_path / "directory.png").mkdir()
    files = onnx_predict.find_images([tmp_path])
    assert len(files) == 20
    for file in files:
        np.testing.assert_array_equal(onnx_predict.read_image(file), read_image(file))
    assert onnx_predict.read_image(tmp_path / "6.png").shape == (9, 6, 3)
    assert onnx_predict.read_image(tmp_path / "xmp.jpg").shape == (6, 9, 3)


def test_sizes_are_those_of_mmdets_resize():
    from mmdet.datasets.transforms import Resize

    for scale, keep in (((1333, 800), True), ((224, 224), True), ((300, 200), False)):
        for height, width in ((480, 640), (640, 427), (30, 900), (223, 225)):
            image = np.zeros((height, width, 3), np.uint8)
            expected = Resize(scale=scale, keep_ratio=keep)({"img": image})["img"].shape[:2]
            assert onnx_predict.new_size(height, width, scale=scale, keep_ratio=keep) == expected


def test_a_failed_check_leaves_no_file_and_keeps_the_old_one(made, tmp_path, monkeypatch, capsys):
    checkpoint, out = made[0], tmp_path / "features.pt2"
    out.write_text("old")
    programs, trace = [], write.trace

    def trace_once(*args):
        programs[:] = programs or [trace(*args)]
        return programs[0]

    monkeypatch.setattr(write, "trace", trace_once)
    monkeypatch.setattr(check, "MAP_TOLERANCE", -1.0)
    argv = (CONFIG, checkpoint, out, "--format", "torch", *options())
    line = fails(capsys, export.main, *argv)
    assert "the check failed at 224 x 112 pixels" in line
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    monkeypatch.setattr(check, "MAP_TOLERANCE", 1e-4)
    export.main([str(arg) for arg in argv])
    facts = {"part": ""}
    torch.export.load(out, extra_files=facts)
    assert json.loads(facts["part"]) == "features" and str(ROOT).encode() not in out.read_bytes()


def test_only_what_works_is_exported(made, tmp_path, monkeypatch, capsys):
    checkpoint, out = made[0], tmp_path / "x.onnx"

    def error(*argv):
        return fails(capsys, export.main, *argv)

    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    line = error(CONFIG, checkpoint, tmp_path / "x.pt2", *options())
    assert line.endswith("x.pt2: files of --format onnx end in .onnx")
    line = error(CONFIG, checkpoint, tmp_path / "x.pt2", "--format", "torch", "--part", "detector",
                 *options())  # fmt: skip
    assert "--part features" in line
    soft = {"model.test_cfg.nms.type": "soft_nms"}
    assert "soft_nms" in error(CONFIG, checkpoint, out, *options(**soft))
    assert "min_bbox_size 4" in error(
        CONFIG, checkpoint, out, *options(**{"model.test_cfg.min_bbox_size": 4})
    )
    tiny = write_tiny(tmp_path / "tiny")
    weights = build_detector(load_config(tiny)).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "resnet.pth")
    line = error(tiny, tmp_path / "resnet.pth", out, "--part", "features")
    assert "backbone ResNet cannot be exported: RoPEViT can" in line
    maskrcnn = ROOT / "configs" / "shapes_maskrcnn.py"
    weights = build_detector(load_config(maskrcnn)).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "maskrcnn.pth")
    line = error(maskrcnn, tmp_path / "maskrcnn.pth", out)
    assert "MaskRCNN" in line and "only RetinaNet" in line and "--part features" in line
    monkeypatch.setattr(write, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert "pip install 'ropevit-mmdet[export]'" in error(CONFIG, checkpoint, out, *options())
    monkeypatch.setattr(torch.export, "export", lambda: None)  # as it was before
    assert "needs a newer PyTorch than 2." in error(CONFIG, checkpoint, out, *options())
    assert not out.exists()


def test_the_predictor_says_what_is_wrong(made, tmp_path, capsys):
    image, bad = tmp_path / "a.png", tmp_path / "bad.png"
    Image.new("RGB", (8, 8)).save(image)
    thin = tmp_path / "thin.png"
    Image.new("RGB", (5000, 1)).save(thin)
    bad.write_bytes(image.read_bytes()[:20])
    proto = onnx.load(made[1])
    files = {}
    for name, change in {"features": ("part", '"features"'), "more": ("resize", "null")}.items():
        for field in proto.metadata_props:
            if field.key == change[0]:
                old, field.value = field.value, change[1]
        files[name] = tmp_path / f"{name}.onnx"
        onnx.save(proto, files[name])
        for field in proto.metadata_props:
            if field.key == change[0]:
                field.value = old
    del proto.metadata_props[:]
    files["bare"] = tmp_path / "bare.onnx"
    onnx.save(proto, files["bare"])
    for argv, message in (
        ((files["features"], image), "holds backbone and neck alone"),
        ((files["more"], image), "does more than resize"),
        ((files["bare"], image), "was not written by tools/export.py"),
        ((image, image), "is no ONNX file"),
        ((tmp_path / "none.onnx", image), "does not exist"),
        ((made[1], tmp_path / "none.png"), "does not exist"),
        ((made[1], bad), "cannot be read"),
        ((made[1], thin), "thin.png: an image of 5000 x 1 pixels is too thin"),
    ):
        assert message in fails(capsys, onnx_predict.main, *argv)
