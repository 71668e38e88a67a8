"""Exported files compute what PyTorch computes, at sizes that they were not traced with."""

import io
import json
import re
from functools import partial
from unittest import mock

import onnx
import pytest
import torch
from mmdet.datasets.transforms import Resize

from ropevit_mmdet import deploy
from ropevit_mmdet.compat.checkpoint import read_checkpoint_file
from ropevit_mmdet.deploy import check, export, export_model, torch_export
from ropevit_mmdet.deploy import onnx as onnx_format
from ropevit_mmdet.deploy.check import compare_detections, compare_features
from ropevit_mmdet.deploy.export import example_for, resizing
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from tests.exportable_models import SMALL_ARCH, WINDOWED, Encoder, exported_detector, run_command
from tests.processes import ROOT
from tests.tiny_coco import write_tiny


@pytest.fixture
def exported():
    return exported_detector()


def test_onnx_detector_equals_pytorch(exported, monkeypatch):
    model, run = exported.model, partial(onnx_format.run, exported.onnx.read_bytes())
    sizes = [*check.check_sizes(model), (168, 224), (29, 33), (112, 112), (113, 391), (1, 1)]
    assert sum(height != width for height, width in sizes) > 3
    for size in sizes:
        equal, text = compare_detections(model, run, size)
        assert equal and (" 50 detections" in text or size == (1, 1))
    nothing = run(torch.zeros(1, 3, 40, 40), 2.0)
    assert [tuple(output.shape) for output in nothing] == [(0, 4), (0,), (0,)]
    monkeypatch.setitem(model.bbox_head.test_cfg, "score_thr", 1.0)
    equal, text = compare_detections(model, run, sizes[0])
    assert equal and "50 detections at threshold 0" in text


@pytest.mark.parametrize(
    "neck",
    [
        dict(scale_factors=(1,), num_outs=2, add_extra_convs="on_output"),
        pytest.param(
            dict(out_strides=(4, 8, 16, 32, 64), in_channels=[32, 32], fuse="sum"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_features_equal_pytorch_in_both_formats(neck, tmp_path):
    tiled = dict(WINDOWED, pos_embed_mode="tile", rope_interpolation=112)
    tiled["out_indices"] = (0, 1) if "fuse" in neck else 1
    model = Encoder(dict(tiled, arch={**SMALL_ARCH, "num_layers": 2}), neck)
    shortest = min_side(model)
    program = torch_export.trace(DynamicFeatures(model).eval(), example_for(model), shortest)
    sizes = [*check.check_sizes(model), (112, 168), (57, 60), (300, 63), (56, 56)]
    names = [f"map{i}" for i in range(len(model.neck.strides))]
    run = partial(onnx_format.run, onnx_format.to_bytes(program, names, {}))
    assert all(compare_features(model, run, size)[0] for size in sizes)
    data = torch_export.to_bytes(program, {"part": "features"})
    (tmp_path / "features.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"is an exported program \(\.pt2\)"):
        read_checkpoint_file(tmp_path / "features.pth")
    metadata = {"part": ""}
    torch.export.load(io.BytesIO(data), extra_files=metadata)
    assert metadata["part"] == "features" and str(ROOT).encode() not in data
    run = partial(torch_export.run, data)
    larger = [size for size in sizes if min(size) >= shortest]
    assert len(larger) > 3 and all(compare_features(model, run, size)[0] for size in larger)


def test_onnx_file_has_metadata_and_no_path(exported):
    proto = onnx.load(exported.onnx)
    metadata = {field.key: json.loads(field.value) for field in proto.metadata_props}
    assert metadata.pop("made_by").startswith("ropevit_mmdet 0.")
    assert metadata == {
        "config": "smaller.py",
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
    assert [value.name for value in proto.graph.input] == ["images"]
    assert [value.name for value in proto.graph.output] == ["boxes", "scores", "labels"]
    assert str(ROOT).encode() not in exported.onnx.read_bytes()
    onnx.checker.check_model(proto, full_check=True)
    with pytest.raises(UserError, match="is an ONNX model"):
        read_checkpoint_file(exported.onnx)


def test_failed_comparison_keeps_the_old_file(exported, tmp_path, monkeypatch, capsys):
    model, config = exported.model, load_config(exported.config)
    request = dict(part="features", file_format="torch")
    out = tmp_path / "features.pt2"
    out.write_text("old")
    monkeypatch.setattr(torch_export, "trace", lambda *_: None)
    monkeypatch.setattr(torch_export, "to_bytes", lambda *_: b"new")
    monkeypatch.setattr(torch_export, "run", lambda data, image, _: wrong(image))

    def wrong(image):
        with torch.no_grad():
            return [level + error for level in model.extract_feat(image)]

    error = 1.0
    with pytest.raises(RuntimeError, match="differs from PyTorch: 224 x 112 pixels, 3 maps"):
        export_model(model, config, (), out, **request)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    error = 0.0
    export_model(model, config, (), out, **request)
    printed = re.findall(r"equal to PyTorch: (\d+ x \d+) pixels", capsys.readouterr().out)
    assert printed == ["224 x 112", "140 x 196", "78 x 157"] and out.read_text() == "new"


def test_export_compares_the_classes(exported, tmp_path, monkeypatch):
    names = ("square", "circle", "triangle", "star", "ring")
    path, argv = tmp_path / "a.pth", [exported.config, tmp_path / "a.pth", tmp_path / "a.onnx"]
    monkeypatch.setattr(deploy, "export_model", lambda *_, **__: argv[2].touch())
    content = torch.load(exported.checkpoint, weights_only=True)
    torch.save(content | dict(meta=dict(dataset_meta=dict(classes=names))), path)
    with pytest.raises(UserError, match="classes in another order .*'square' there and 'circle'"):
        run_command("export", *argv)
    torch.save(content | dict(meta=dict(dataset_meta=dict(classes=(*names[:4], "x")))), path)
    with mock.patch("logging.Logger._log") as log:
        run_command("export", *argv)
    assert "was trained on other classes" in str(log.call_args_list)


def test_unsupported_requests(exported, tmp_path, monkeypatch):
    model, config, names = exported.model, load_config(exported.config), ("a",)
    onnx_detector = dict(part="detector", file_format="onnx")
    resnet = build_detector(load_config(write_tiny(tmp_path)))
    monkeypatch.setitem(model.bbox_head.test_cfg, "min_bbox_size", 4)
    for detector, name, request, message in (
        (model, "x.pt2", dict(part="detector", file_format="torch"), "--part features"),
        (model, "x.onnx", onnx_detector, "min_bbox_size=4; .*--part features"),
        (resnet, "x.onnx", dict(part="features", file_format="onnx"), r"ResNet \(only RoPEViT\)"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(detector, config, names, tmp_path / name, **request)
    monkeypatch.setitem(model.bbox_head.test_cfg, "min_bbox_size", 0)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ropevit-mmdet\[export\]'"):
        export_model(model, config, names, tmp_path / "x.onnx", **onnx_detector)
    assert not list(tmp_path.glob("x.*"))


def test_resizing_describes_only_resize():
    load, pack = dict(type="LoadImageFromFile"), dict(type="PackDetInputs")

    def of(*steps):
        pipeline = [load, *steps, dict(type="LoadAnnotations", with_bbox=True), pack]
        config = load_config(ROOT / "configs" / "shapes_retinanet.py")
        config.test_dataloader.dataset.pipeline = pipeline
        return resizing(config)

    resize = dict(type="Resize", scale=(1333, 800), keep_ratio=True)
    assert of(resize) == {"scale": [1333, 800], "keep_ratio": True}
    assert of({**resize, "type": Resize}) == of(resize)
    assert of(dict(type="mmdet.Resize", scale=64)) == {"scale": [64, 64], "keep_ratio": False}
    assert of() == {"scale": None, "keep_ratio": True}
    assert of(resize, dict(type="Pad", size_divisor=32)) is None
    assert of({**resize, "backend": "pillow"}) is None
    assert of(dict(type="CenterCrop", crop_size=(3, 3))) is None
