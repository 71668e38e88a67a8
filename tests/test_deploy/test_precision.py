"""Lower precision changes layers only, and a file is written only if its AP is PyTorch's."""

import copy
import json
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmengine.structures import BaseDataElement
from PIL import Image

from ropevit_mmdet.apis import Detector
from ropevit_mmdet.deploy import (
    Request,
    check_request,
    evaluation,
    export_model,
    torch_export,
)
from ropevit_mmdet.deploy import onnx as onnx_format
from ropevit_mmdet.deploy.check import (
    Detections,
    compare_detections,
    disagreement,
    example_images,
)
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.evaluation import ExportedDetector, evaluation_data, open_exported
from ropevit_mmdet.deploy.export import example_for
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side
from ropevit_mmdet.deploy.precision import Reduction, layer_of, to_bfloat16
from ropevit_mmdet.deploy.precision_check import PrecisionCheck
from ropevit_mmdet.errors import UserError
from tests.exportable_models import eager, run_command, small_detector

FLOAT16 = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def dataset(exported, tmp_path_factory):
    """Two images; the ground truth is what the exported detector's PyTorch model detects."""
    root = tmp_path_factory.mktemp("shapes")
    _, config, checkpoint, _ = exported
    detector = Detector(checkpoint, config=config, device="cpu")
    random, images, annotations = np.random.default_rng(0), [], []
    (root / "images").mkdir()
    for i, size in enumerate(((168, 224), (224, 168)), start=1):
        coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        name = f"images/{i}.png"
        coarse.resize(size).save(root / name)
        images.append(dict(id=i, file_name=name, width=size[0], height=size[1]))
        found = detector(root / name).pred_instances[:10]
        for (x1, y1, x2, y2), label in zip(found.bboxes.tolist(), found.labels.tolist()):
            box = [x1, y1, x2 - x1, y2 - y1]
            one = dict(image_id=i, bbox=box, category_id=label + 1, iscrowd=0, area=box[2] * box[3])
            corners = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            annotations.append(dict(id=1 + len(annotations), segmentation=corners, **one))
    categories = [dict(id=i, name=name) for i, name in enumerate(detector.classes, start=1)]
    document = dict(images=images, annotations=annotations, categories=categories)
    (root / "truth.json").write_text(json.dumps(document))
    path = root / "config.py"
    loader = f"num_workers=0, persistent_workers=False, dataset=dict(data_root={str(root)!r}, "
    loader += "ann_file='truth.json', data_prefix=dict(img=''))"
    evaluator = f"ann_file={str(root / 'truth.json')!r}"
    path.write_text(
        f"_base_ = [{str(config)!r}]\ntrain_dataloader = dict({loader})\n"
        f"val_dataloader = dict({loader})\nval_evaluator = dict({evaluator})\n"
    )
    return Detector(checkpoint, config=path, device="cpu").config, path


@pytest.fixture
def data(exported):
    return exported.onnx.read_bytes()


def operators(content):
    return {node.op_type for node in onnx.load_model_from_string(content).graph.node}


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("features.backbone.blocks.3.attn.qkv/MatMul_7", "features.backbone.blocks.3"),
        ("head.box_stages.0.1.fc_cls/Gemm_8", "head.box_stages.0"),
        ("head.rpn_head.rpn_cls/Conv_8", "head.rpn_head.rpn_cls"),
        ("backbone.blocks.0.mlp.fc1/MatMul_3", "backbone.blocks.0"),
        ("1.neck.neck.scales.1/ConvTranspose_4", "1.neck.neck.scales.1"),
        *((node, None) for node in ("features/Sin_1", "features.neck/Gather_2", "head/TopK_3")),
        ("head.model.decoder.layers.0.ffn/Gemm_5", None),
    ],
)
def test_layer_of(node, layer):
    assert layer_of(node) == layer


def test_float16_is_in_layers_only(data):
    """In 224 pixels float16 has steps of 0.125: boxes must not pass through it."""
    images, run = example_images((168, 224)), onnx_format.runner(data)
    reduction = Reduction(data, "fp16")
    half = reduction.file()
    graph = onnx.load_model_from_string(half).graph
    assert {one.data_type for one in graph.initializer if one.name.endswith("_fp16")} == {FLOAT16}
    halves = [node for node in graph.node if any(n.endswith("_fp16") for n in node.input)]
    types = {node.op_type for node in halves}
    assert {"Conv", "MatMul", "LayerNormalization", "Softmax", "Erf"} <= types
    assert all(node.op_type == "Cast" or layer_of(node.name) for node in halves)
    assert len(half) < 0.7 * len(data)
    expected, actual = run(images, None), onnx_format.runner(half)(images, None)
    boxes = actual[0][..., :4]
    assert not torch.equal(expected[0], actual[0]) and not torch.equal(boxes, boxes.half().float())
    pair = [Detections(d[0, :, :4], d[0, :, 4], labels[0]) for d, labels in (expected, actual)]
    assert 0 < disagreement(*pair) < 0.05
    unchanged = onnx_format.runner(reduction.file(reduction.layers))(images, None)
    assert all(map(torch.equal, expected, unchanged))


@pytest.mark.parametrize("inputs", [(), (example_images((56, 84)), example_images((84, 56)))])
def test_int8_static_and_dynamic(data, inputs):
    reduction = Reduction(data, "int8", inputs)
    content = reduction.file(["features.backbone.blocks.1"])
    added = operators(content) - operators(data)
    static = {"QuantizeLinear", "DequantizeLinear"}
    assert added == (static if inputs else {"DynamicQuantizeLinear", "MatMulInteger"})
    assert ("head.head.retina_cls" in reduction.layers) == bool(inputs)
    proto, fields = onnx.load_model_from_string(content), onnx_format.metadata_of(content)
    assert fields.pop("float32_layers") == ["features.backbone.blocks.1"]
    assert fields == onnx_format.metadata_of(data)
    weights = {one.name: one.data_type for one in proto.graph.initializer}
    quantized = {name for name, type_ in weights.items() if type_ == onnx.TensorProto.INT8}
    kept = [n for n in proto.graph.node if layer_of(n.name) == "features.backbone.blocks.1"]
    assert quantized and not any(quantized & {*node.input} for node in kept)
    assert onnx_format.runner(content)(example_images((70, 98), 3), None)[0].isfinite().all()


@pytest.mark.parametrize("name", ["retinanet", "maskrcnn", "dino", "eomt"])
def test_bfloat16_computes_features_and_heads(name):
    model = small_detector(name)
    graph = to_bfloat16(DynamicDetector(model))
    types = {parameter.dtype for parameter in graph.features.parameters()}
    assert types == {torch.bfloat16} and next(model.parameters()).dtype == torch.float32
    images = example_images((57, 100), 2)
    outputs = eager(graph)(images)
    assert outputs[0].dtype == torch.float32 and outputs[0].isfinite().all()
    assert (outputs[1] >= 0).any() and not torch.equal(outputs[0], outputs[0].bfloat16().float())
    if name == "eomt":
        return
    with torch.no_grad():
        maps = zip(model.extract_feat(images), to_bfloat16(DynamicFeatures(model))(images))
    assert all(torch.dist(a, b) < 0.03 * a.norm() and b.dtype == torch.float32 for a, b in maps)


def test_exported_figures_equal_pytorch(exported, dataset, capsys):
    _, _, checkpoint, path = exported
    argv = [path, "--config", dataset[1], "--checkpoint", checkpoint]
    run_command("evaluate", *argv)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    figures = {name.strip(): [float(value) for value in values] for name, *values in rows[1:]}
    expected, actual = figures["coco/bbox_mAP"]
    assert expected > 0.9 and abs(expected - actual) <= 0.001
    assert figures["box difference (pixels)"][1] < 0.01 and figures["score difference"][1] < 1e-4
    options = ["--cfg-options", "model.test_cfg.score_thr=1.5"]
    run_command("evaluate", *argv, "--images", 1, *options)
    figures = capsys.readouterr().out
    assert "coco/bbox_mAP " in figures and "box difference" not in figures  # PyTorch has none


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_exported_detector_fits_detections_to_the_original_image(dtype):
    """Of a file with a fixed batch that normalizes, for an image that was halved and padded."""
    seen = []

    def run(images, _):
        seen.append(images)
        dets = torch.tensor([[4.0, 8, 12, 16, 0.9], [0, 0, 0, 0, 0]]).repeat(2, 1, 1)
        size = (4, 4) if dtype == torch.float32 else (24, 40)
        masks = torch.ones(2, 2, *size, dtype=dtype)
        masks[..., 20:, :] = masks[..., 30:] = 0
        return dets, torch.tensor([[1, -1]] * 2), masks

    metadata = dict(normalized_by="file", channel_order="BGR", batch=2, mask_thr_binary=0.5)
    sample = BaseDataElement(metainfo=dict(ori_shape=(40, 60), scale_factor=(0.5, 0.5)))
    image = torch.randint(256, (3, 24, 40), dtype=torch.uint8)
    data = dict(inputs=[image + 0.25], data_samples=[sample])  # of `to_float32`
    found = ExportedDetector(run, metadata).test_step(data)[0].pred_instances
    assert torch.equal(seen[0], image.flip(0)[None].repeat(2, 1, 1, 1))
    assert found.bboxes.tolist() == [[8, 16, 24, 32]] and found.labels.tolist() == [1]
    assert found.masks.shape == (1, 40, 60)
    assert found.masks.sum() == (
        252 if dtype == torch.float32 else 40 * 60
    )  # 16 x 16 without corners


@pytest.fixture
def check_of(exported, dataset, data):
    """Creates the check of a request, which appends its lines to a list."""

    def create(lines, **settings):
        fields, request = onnx_format.metadata_of(data), Request(**{"calibration": 1, **settings})
        return PrecisionCheck(exported.model, dataset[0], fields, request, lines.append, iter)

    return create


def test_the_layer_that_overflows_in_float16_stays_float32(check_of, data):
    """The values of a block are a million times larger, and its projection is that much smaller."""
    proto = onnx.load_model_from_string(data)
    values = {one.name: one for one in proto.graph.initializer}
    attention = "features.backbone.blocks.0.attn"
    for node in proto.graph.node:
        layer, _, name = node.name.partition("/")
        for weight in (values[name] for name in node.input if name in values):
            array = onnx.numpy_helper.to_array(weight).copy()
            if layer == f"{attention}.qkv" and name.startswith(("MatMul", "Add")):
                array[..., 96:] *= 1e6
            elif layer == f"{attention}.proj" and name.startswith("MatMul"):
                array *= 1e-6
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    lines = []
    content = check_of(lines, precision="fp16").reduced(proto.SerializeToString())
    assert onnx_format.metadata_of(content)["float32_layers"] == ["features.backbone.blocks.0"]
    assert "coco/bbox_mAP 0.0000, PyTorch " in "".join(lines)
    assert lines[-1] == "float32 because of the check: features.backbone.blocks.0"


def test_float16_needs_no_training_images(check_of, data, monkeypatch):
    monkeypatch.setattr(evaluation, "calibration_images", None)
    monkeypatch.setattr(PrecisionCheck, "_problem", lambda *_: "")
    lines = []
    assert len(check_of(lines, precision="fp16").reduced(data)) < 0.7 * len(data)


def test_metrics_of_mmdet_count_the_tested_images_only(dataset, exported):
    """Of the test set, too, where a run had no validation."""
    config = copy.deepcopy(dataset[0])
    config.val_evaluator.type = "CocoMetric"
    for key in ("dataloader", "evaluator"):
        config[f"test_{key}"], config[f"val_{key}"] = config[f"val_{key}"], None
    data = evaluation_data(config)
    figures = evaluation.evaluate({"PyTorch": exported.model}, *data, images=1)
    assert figures["PyTorch"]["coco/bbox_mAP"] > 0.9


def test_evaluation_needs_images_with_their_metric(dataset, exported, tmp_path, monkeypatch):
    """What is missing is named before the detector is traced."""
    config, other = copy.deepcopy(dataset[0]), tmp_path / "other.json"
    document = json.loads(Path(config.val_evaluator.ann_file).read_text())
    first = [one for one in document["annotations"] if one["image_id"] == 1]
    other.write_text(json.dumps(document | dict(images=document["images"][:1], annotations=first)))
    monkeypatch.setattr(torch_export, "trace", None)
    request = Request(precision="fp16")
    for changes, message in (
        (dict(ann_file=str(other)), "val_evaluator: image 2 .* missing in .*other.json"),
        (dict(ann_file="gone.json"), "annotation file gone.json does not exist"),
        (dict(type="CocoPanopticMetric"), "val_evaluator: CocoPanopticMetric does not evaluate"),
        (dict(type="MultiDatasetsEvaluator"), "val_evaluator: MultiDatasetsEvaluator does not"),
    ):
        config.val_evaluator.update(changes)
        with pytest.raises(UserError, match=message):
            export_model(exported.model, config, "abcde", tmp_path / "x.onnx", request)
    config.val_evaluator = config.test_evaluator = None
    with pytest.raises(UserError, match="the config has no val_dataloader and val_evaluator"):
        export_model(exported.model, config, "abcde", tmp_path / "x.onnx", request)


def test_classes_of_a_file_are_those_of_the_dataset(dataset):
    data = evaluation_data(dataset[0])
    names = data[0].dataset.metainfo["classes"]
    for classes, message in (
        (names[::-1], "of x has the dataset's classes in another order"),
        (names[:3], "x has 3 classes, and the dataset has 5"),
    ):
        with pytest.raises(UserError, match=message):
            evaluation.evaluate({"x": ExportedDetector(None, dict(class_names=classes))}, *data)


def test_images_of_a_fixed_size_keep_their_aspect_if_the_pipeline_pads():
    resize = dict(type="Resize", scale=(64, 64), keep_ratio=True)
    for pad in ([], [dict(type="Pad", size=(64, 64))], [dict(type="mmdet.Pad", size_divisor=32)]):
        pipeline = [dict(resize), *pad]
        evaluation._resize(dict(type="CocoDataset", pipeline=pipeline), (20, 30))
        assert pipeline[0] == dict(resize, scale=(30, 20), keep_ratio=bool(pad))
        assert not pad or pipeline[1] == dict(type=pad[0]["type"], size=(30, 20))


def test_a_file_that_fails_is_not_returned(check_of, data, monkeypatch):
    figures = dict(a={"coco/segm_mAP": 0.5, "coco/bbox_mAP": 0.4, "coco/bbox_mAP_50": 0.9})
    figures["b"] = {"coco/segm_mAP": 0.4, "coco/bbox_mAP": 0.395, "coco/bbox_mAP_50": 0.1}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: figures)
    monkeypatch.setattr(PrecisionCheck, "_loss", lambda *_: 0.0)
    lines = []
    message = "int8 file is not written, even with float32 in .*features.backbone.blocks.1.*: "
    with pytest.raises(RuntimeError, match=f"{message}coco/segm_mAP 0.4000, PyTorch 0.5000; at"):
        check_of(lines, precision="int8", dynamic=True).reduced(data)
    run = onnx_format.runner(data)
    with pytest.raises(RuntimeError, match="bf16 file is not written: coco/segm_mAP 0.4000"):
        check_of(lines, precision="bf16").accept(run)
    figures["b"] = dict(figures["a"], **{"coco/segm_mAP": 0.49})
    check_of(lines, precision="int8", dynamic=True).reduced(data)
    figures["b"]["coco/segm_mAP"] = float("nan")
    with pytest.raises(RuntimeError, match="PyTorch 0.5000"):
        check_of(lines, precision="int8").accept(run)
    for name in ("coco/segm_mAP", "coco/bbox_mAP"):  # without ground truth
        figures["a"][name] = figures["b"][name] = -1.0
    with pytest.raises(RuntimeError, match="no mAP to check it"):
        check_of(lines, precision="bf16").accept(run)


def test_feature_maps_are_checked_by_their_error(check_of, exported):
    model, lines = exported.model, []
    check = check_of(lines, precision="fp16", part="features")

    def scaled(scale, images, _):
        with torch.no_grad():
            return [level * scale for level in model.extract_feat(images)]

    check.accept(partial(scaled, 1.009))
    assert lines == ["largest relative error of the feature maps: 0.0090"]
    for scale in (1.011, float("nan")):
        with pytest.raises(RuntimeError, match="fp16 file is not written: feature maps differ by"):
            check.accept(partial(scaled, scale))


def test_calibration_images_have_the_size_of_the_file(dataset, data):
    config = dataset[0]
    (image,) = evaluation.calibration_images(config, 1, (98, 70))
    assert image.shape == (3, 98, 70) and image.dtype == torch.uint8
    metadata = dict(onnx_format.metadata_of(data), normalized_by="caller", batch=3)
    detector = ExportedDetector(None, metadata)
    assert detector.prepared(image).shape == (3, 3, 98, 70)


def test_requests_that_a_format_cannot_have(tmp_path, monkeypatch):
    request = Request(precision="bf16")
    with pytest.raises(UserError, match="--precision bf16: --format onnx has fp32, fp16, int8"):
        check_request(tmp_path / "x.onnx", request)
    request = Request(file_format="aotinductor", precision="bf16")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImportError, match="needs a C.. compiler: install g"):
        check_request(tmp_path / "x.pt2", request)
    (tmp_path / "x.onnx").write_bytes(onnx.ModelProto().SerializeToString())
    for name in ("y.onnx", "y.pt2"):
        (tmp_path / name).write_bytes(b"text")
    for name in ("x.onnx", "y.onnx", "y.pt2", "gone.pt2"):
        with pytest.raises(UserError, match=f"{name} is not a file of `ropevit export"):
            open_exported(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write into .*: .*file is a file"):
        check_request(tmp_path / "file" / "x.onnx", Request())


def test_providers_that_are_missing_or_do_not_start(data, monkeypatch, tmp_path):
    """CUDA without its libraries falls back to the CPU, whose milliseconds would be printed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'ropevit-mmdet\[openvino\]'"):
        check_request(tmp_path / "x.onnx", Request(provider="openvino:bf16"))
    with pytest.raises(UserError, match="--provider NoProvider: there are .*CPUExecutionProvider"):
        check_request(tmp_path / "x.onnx", Request(provider="NoProvider"))
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    with warnings.catch_warnings(), pytest.raises(UserError, match="CUDA.* does not start here"):
        warnings.simplefilter("ignore")
        onnx_format.runner(data, providers[0])


def test_openvino_equals_pytorch(exported, data):
    pytest.importorskip("openvino")
    model, run = exported.model, onnx_format.runner(data, "openvino")
    for size, batch in (((168, 224), 1), ((57, 100), 3)):
        equal, text = compare_detections(model, run, example_images(size, batch))
        assert equal, text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "maskrcnn"])
def test_aotinductor_package_equals_pytorch(name):
    model = small_detector(name, num_layers=1)
    program = torch_export.trace(DynamicDetector(model).eval(), example_for(model), min_side(model))
    data = torch_export.to_package(program, {"score_thr": "0.05", "part": '"detector"'})
    assert torch_export.metadata_of(data) == {"score_thr": 0.05, "part": "detector"}
    run = torch_export.runner(data)
    for size, batch in (((57, 100), 2), ((113, 80), 1), ((70, 98), 5)):
        equal, text = compare_detections(model, run, example_images(size, batch))
        assert equal, text
