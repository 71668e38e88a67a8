"""Exported files compute what PyTorch computes, at sizes that they were not traced with."""

import copy
import io
import json
import re

import onnx
import pytest
import torch
from mmdet.datasets.transforms import Resize

from ropevit_mmdet.compat.checkpoint import read_checkpoint_file
from ropevit_mmdet.deploy import Request, check, export, export_model, torch_export
from ropevit_mmdet.deploy import onnx as onnx_format
from ropevit_mmdet.deploy.check import compare_detections, compare_features, example_images
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.export import example_for, resizing
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side
from ropevit_mmdet.deploy.precision import Reduction
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from tests.exportable_models import (
    QUERIES,
    SMALL_ARCH,
    WINDOWED,
    Encoder,
    run_command,
    small_detector,
)
from tests.processes import ROOT
from tests.tiny_coco import write_tiny

HEADS = ("fcos", "atss", "rtmdet", "maskrcnn", "cascade-maskrcnn", "dino", "eomt")


def exported_runner(model, file_format):
    """A detector's exported content as a function."""
    graph = DynamicDetector(model).eval()
    program = torch_export.trace(graph, example_for(model), min_side(model))
    if file_format == "onnx":
        data = onnx_format.to_bytes(program, graph.outputs, {})
        assert not operators_that_tensorrt_lacks(data)
        return onnx_format.runner(data)
    return torch_export.runner(torch_export.to_bytes(program, {}))


def test_onnx_detector_equals_pytorch(exported, monkeypatch):
    model, run = exported.model, onnx_format.runner(exported.onnx.read_bytes())
    sizes = [*check.check_sizes(model), (168, 224), (29, 33), (112, 112), (113, 391), (1, 1)]
    assert sum(height != width for height, width in sizes) > 3
    for i, size in enumerate(sizes):
        equal, text = compare_detections(model, run, example_images(size, 1 + i % 3))
        assert equal and (f" {50 + 50 * (i % 3)} detections" in text or size == (1, 1))
    dets, labels = run(torch.zeros(3, 3, 40, 40), 2.0)
    assert dets.shape == (3, 50, 5) and not dets.any() and (labels == -1).all()
    for value in (float("nan"), float("inf")):  # nothing is detected in its image, as in PyTorch
        images = example_images((168, 224), 3)
        images[1, 2, 5, 7] = value
        dets, labels = run(images, None)
        assert ((labels >= 0).any(1) == torch.tensor([True, False, True])).all()
        assert not dets[1].any() and not len(check.predict(model, images[1:2])[0].scores)
    monkeypatch.setitem(model.bbox_head.test_cfg, "score_thr", 1.0)
    equal, text = compare_detections(model, run, example_images(sizes[0], 2))
    assert equal and re.search(r"\d\d detections at threshold \d", text)


def operators_that_tensorrt_lacks(content):
    lines = (ROOT / "tests" / "data" / "tensorrt_operators.txt").read_text().splitlines()
    supported = {name for line in lines if not line.startswith("#") for name in line.split()}
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)).graph
    assert not any(node.domain for node in graph.node)
    types = {one.name: one.data_type for one in graph.initializer}
    types |= {o.name: o.type.tensor_type.elem_type for o in (*graph.value_info, *graph.input)}
    for node in graph.node:  # restrictions that the list has
        if node.op_type == "CumSum":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT and node.input[1] in types
    return {node.op_type for node in graph.node} - supported


def test_tensorrt_has_the_operators_of_a_graph(exported):
    content = exported.onnx.read_bytes()
    assert not operators_that_tensorrt_lacks(content)
    assert not operators_that_tensorrt_lacks(Reduction(content, "fp16").file())
    integer = operators_that_tensorrt_lacks(Reduction(content, "int8").file())
    assert integer == {"DynamicQuantizeLinear", "MatMulInteger"}  # as docs/export.md says


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", *HEADS])
@pytest.mark.parametrize("file_format", ["onnx", "torch"])
def test_every_head_equals_pytorch_at_every_size_and_batch(name, file_format):
    model = small_detector(name, num_layers=1)
    run = exported_runner(model, file_format)
    smallest = min_side(model) if file_format == "torch" else 1
    for size in [*check.check_sizes(model), (57, 100)]:
        for batch in check.BATCHES if min(size) >= smallest else ():
            images = example_images(size, batch)
            equal, text = compare_detections(model, run, images)
            assert equal and " 0 detections" not in text
            if name not in QUERIES:
                outputs = run(images, 2.0)
                assert (outputs[1] == -1).all() and not any(
                    map(torch.any, [outputs[0], *outputs[2:]])
                )


def test_fixed_size_and_batch_with_pasted_masks_and_normalization(tmp_path):
    model, size = small_detector("maskrcnn", num_layers=1), (57, 100)
    request = Request(size=size, batch=2, opset=20, normalize=True, pasted=True)
    config = load_config(ROOT / "configs" / "ropevit_maskrcnn.py")
    path, lines = tmp_path / "x.onnx", []
    export_model(model, config, ("a", "b", "c"), path, request, report=lines.append)
    assert sum("equal to PyTorch: 57 x 100 pixels, 2 images" in line for line in lines) == 1
    proto = onnx.load(path)
    assert not operators_that_tensorrt_lacks(path.read_bytes())
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert shapes == [[2, 3, 57, 100], [2, 20, 5], [2, 20], [2, 20, 57, 100]]
    assert proto.opset_import[0].version == 20
    metadata = {field.key: json.loads(field.value) for field in proto.metadata_props}
    assert metadata["size"] == [57, 100] and metadata["batch"] == 2
    assert metadata["normalized_by"] == "file"


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
    run = onnx_format.runner(onnx_format.to_bytes(program, names, {}))
    for i, size in enumerate(sizes):
        assert compare_features(model, run, example_images(size, 1 + i % 3))[0]
    data = torch_export.to_bytes(program, {"part": "features"})
    (tmp_path / "features.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"is an exported program \(\.pt2\)"):
        read_checkpoint_file(tmp_path / "features.pth")
    metadata = {"part": ""}
    torch.export.load(io.BytesIO(data), extra_files=metadata)
    assert metadata["part"] == "features" and str(ROOT).encode() not in data
    run = torch_export.runner(data)
    larger = [size for size in sizes if min(size) >= shortest]
    for i, size in enumerate(larger):
        assert compare_features(model, run, example_images(size, 1 + i % 3))[0]
    assert len(larger) > 3


def test_onnx_file_has_metadata_and_no_path(exported):
    proto = onnx.load(exported.onnx)
    metadata = {field.key: json.loads(field.value) for field in proto.metadata_props}
    assert metadata.pop("made_by").startswith("ropevit_mmdet 0.")
    assert metadata == {
        "config": "a.py",
        "part": "detector",
        "model": "RetinaNet",
        "patch_size": 7,
        "resize": {"scale": [224, 224], "keep_ratio": True},
        "channel_order": "RGB",
        "mean": [127.5, 127.5, 127.5],
        "std": [64.0, 64.0, 64.0],
        "pad_size_divisor": 28,
        "pad_value": 0,
        "normalized_by": "caller",
        "precision": "fp32",
        "size": None,
        "batch": None,
        "class_names": ["circle", "square", "triangle", "star", "ring"],
        "strides": [7, 14, 28],
        "score_thr": 0.05,
        "iou_threshold": 0.5,
        "max_per_img": 50,
        "mask_thr_binary": None,
    }
    assert [value.name for value in proto.graph.input] == ["images"]
    assert [value.name for value in proto.graph.output] == ["dets", "labels"]
    assert str(ROOT).encode() not in exported.onnx.read_bytes()
    onnx.checker.check_model(proto, full_check=True)
    with pytest.raises(UserError, match="is an ONNX model"):
        read_checkpoint_file(exported.onnx)


def test_failed_comparison_keeps_the_old_file(exported, tmp_path, monkeypatch):
    model, config, lines = exported.model, load_config(exported.config), []
    request, out = Request(part="features", file_format="torch"), tmp_path / "features.pt2"
    out.write_text("old")

    def use_error(error):
        run = lambda images, _: [x + error for x in check.feature_maps(model, images)]  # noqa: E731
        monkeypatch.setattr(torch_export, "runner", lambda data: run)

    monkeypatch.setattr(torch_export, "trace", lambda *_, **__: None)
    monkeypatch.setattr(torch_export, "to_bytes", lambda *_: b"new")
    use_error(1.0)
    message = "differs from PyTorch: 224 x 112 pixels, 1 image, 3 maps"
    with pytest.raises(RuntimeError, match=message):
        export_model(model, config, (), out, request, report=lines.append)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    use_error(0.0)
    export_model(model, config, (), out, request, report=lines.append)
    printed = re.findall(r"equal to PyTorch: (\d+ x \d+) pixels", "".join(lines))
    assert printed == ["224 x 112", "140 x 196", "78 x 157"] and out.read_text() == "new"


def test_export_compares_the_classes(exported, tmp_path):
    names = ("square", "circle", "triangle", "star", "ring")
    content = torch.load(exported.checkpoint, weights_only=True)
    torch.save(content | dict(meta=dict(dataset_meta=dict(classes=names))), tmp_path / "a.pth")
    with pytest.raises(UserError, match="classes in another order .*'square' there and 'circle'"):
        run_command("export", exported.config, tmp_path / "a.pth", tmp_path / "a.onnx")


def test_unsupported_requests(exported, tmp_path, monkeypatch):
    model, config, names = exported.model, load_config(exported.config), ("a",)
    resnet = build_detector(load_config(write_tiny(tmp_path)))
    teacher = copy.copy(resnet)  # SoftTeacher has a detector within
    teacher._modules = dict(detector=resnet, data_preprocessor=resnet.data_preprocessor)
    monkeypatch.setitem(model.bbox_head.test_cfg, "min_bbox_size", 4)
    for detector, name, request, message in (
        (model, "x.pt2", Request(), "files of --format onnx end in .onnx"),
        (model, "x.onnx", Request(), "min_bbox_size=4; .*--part features"),
        (model, "x.onnx", Request(pasted=True), "masks pasted"),
        (model, "x.onnx", Request("features", size=(28, 99)), "--size 28 99 .at least 29 pixels"),
        (resnet, "x.onnx", Request(part="features"), r"ResNet \(only RoPEViT\)"),
        (teacher, "x.onnx", Request(), r"NoneType \(only RoPEViT\), RetinaNet with NoneType"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(detector, config, names, tmp_path / name, request)
    monkeypatch.setitem(model.bbox_head.test_cfg, "min_bbox_size", 0)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ropevit-mmdet\[export\]'"):
        export_model(model, config, names, tmp_path / "x.onnx", Request())
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
