"""Results on a GPU equal those on a CPU: backbone, operators, detectors. Run with -m gpu."""

from ropevit_mmdet import compat  # isort: skip  (it must precede mmcv.ops)

import copy
import importlib

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch.testing import assert_close

from ropevit_mmdet import RoPEViT
from tests import oracle
from tests.test_compat.test_ops.test_boxes import random_boxes
from tests.test_compat.test_ops.test_roi_align import SCALE, maps_and_rois
from tests.test_engine.test_float32_decoding import (
    NAMES,
    assert_boxes_equal_float64,
    detector,
    wide_image,
)
from tests.test_models.test_layers.test_window_attention import RECIPE, STYLES, run, small

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FALLBACK = compat.ops.fallback_module()
SETTINGS = {
    "windows": dict(window_size=4, global_attn_indices=(1, 3), pos_embed_mode="tile"),
    "fitted": dict(rope_interpolation=448),
    "windows, checkpointed": dict(window_size=4, global_attn_indices=(1, 3), with_cp=True),
}
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def no_tf32():
    """float32 is float32: cuDNN's convolutions would round to TF32 by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", SETTINGS)
def test_features_and_gradients_equal_those_of_the_cpu(name, style):
    ours = small(oracle.SMALL | STYLES[style], **SETTINGS[name]).train()
    theirs = copy.deepcopy(ours).to(DEVICE)
    images = oracle.seeded_images((2, 3, 252, 364))
    expected, actual = ours(images)[0], theirs(images.to(DEVICE))[0]
    tiled = "pos_embed_mode" in SETTINGS[name]  # the other mode interpolates in float32
    assert oracle.relative_error(actual.cpu(), expected) <= (1e-12 if tiled else 1e-6)
    for maps in (expected, actual):
        maps.square().mean().backward()
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = oracle.relative_error(other.grad.cpu(), parameter.grad)
        assert error <= (1e-10 if tiled else 1e-5), key


@pytest.mark.parametrize(
    ("config", "size", "limit"),
    [(None, (224, 224), 1e-10), (oracle.SMALL, (448, 308), 1e-6)],  # positions are float32
    ids=["as published", "of another size"],
)
def test_features_equal_birder(config, size, limit, tmp_path):
    """Twelve blocks of random weights amplify the last digit: few blocks at another size."""
    pytest.importorskip("birder")
    net = oracle.birder_net(config=config)
    checkpoint = str(oracle.write_checkpoint(net, tmp_path, config=config))
    init = dict(type="Pretrained", checkpoint=checkpoint)
    model = RoPEViT(config or "rope_vit_reg4_b14", rope_interpolation="none", init_cfg=init)
    model.init_weights()
    images = oracle.seeded_images((1, 3, *size)).to(DEVICE)
    actual = run(model.double().eval().to(DEVICE), images)
    expected = oracle.birder_map(net.to(DEVICE), images, final_norm=True)
    assert oracle.relative_error(actual, expected) <= limit


@pytest.mark.parametrize("half", [None, *HALVES], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_rounding_is_that_of_the_dtype(name, half):
    model = small(**SETTINGS[name])
    images = oracle.seeded_images((2, 3, 252, 364))
    expected = run(model, images)
    model, images = model.float().to(DEVICE).train(), images.float().to(DEVICE)
    with torch.autocast("cuda", half, enabled=half is not None):
        (actual,) = model(images)
    limit = 32 * torch.finfo(half).eps if half else 1e-5
    assert oracle.relative_error(actual.detach().cpu().double(), expected) <= limit
    actual.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    tables = [table for tables in model.rope_tables._cache.values() for table in tables]
    assert tables and {table.dtype for table in tables} == {torch.float32}


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arguments", [{}, RECIPE | dict(global_attn_indices=(1, 3))], ids=str)
def test_compiled_equals_eager_up_to_rounding(arguments, half):
    torch._dynamo.reset()
    model = small(**arguments).float().to(DEVICE)
    compiled = torch.compile(model, dynamic=True)
    for size in ((224, 224), (448, 672), (280, 364)):
        images = oracle.seeded_images((2, 3, *size)).float().to(DEVICE)
        with torch.autocast("cuda", half, enabled=half is not None):
            actual = run(compiled, images)
        limit = 32 * torch.finfo(half).eps if half else 1e-4
        assert oracle.relative_error(actual.float(), run(model, images)) <= limit


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("ties", [False, True])
def test_suppression(ties, offset):
    boxes, scores = random_boxes(300, ties=ties)
    labels = torch.arange(300) % 3
    calls = {
        "nms": lambda b, s, _: mmcv.ops.nms(b, s, 0.3, offset=offset),
        "by class": lambda b, s, ids: mmcv.ops.batched_nms(
            b, s, ids, dict(type="nms", iou_threshold=0.3)
        ),
        "soft": lambda b, s, _: mmcv.ops.soft_nms(b, s, 0.3, method="linear", offset=offset),
        "groups": lambda b, s, _: [
            sorted(torch.as_tensor(group).tolist())
            for group in mmcv.ops.nms_match(torch.cat((b, s[:, None]), dim=1), 0.3)
        ],
    }
    for name, call in calls.items():
        expected = call(boxes, scores, labels)
        actual = call(boxes.to(DEVICE), scores.to(DEVICE), labels.to(DEVICE))
        assert_close(actual, expected, check_device=False, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(aligned, ratio, dtype):
    maps, rois = maps_and_rois(dtype)
    rois = rois.to(dtype)
    layer = mmcv.ops.RoIAlign((3, 2), SCALE, ratio, aligned=aligned)
    compare(lambda m: layer(m, rois.to(m.device)), [maps])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_focal_loss(dtype, monkeypatch):
    monkeypatch.setattr(importlib.import_module("mmcv.ops.focal_loss"), "ext_module", FALLBACK)
    logits, targets = 4 * torch.randn(60, 5, dtype=dtype), torch.arange(60) % 6
    compare(lambda x: mmcv.ops.sigmoid_focal_loss(x, targets.to(x.device), 2.0, 0.25), [logits])


def test_deformable_sampling():
    maps, weight = torch.randn(2, 4, 9, 11).double(), torch.randn(6, 4, 3, 3).double()
    offset, mask = 2 * torch.randn(2, 18, 9, 11).double(), torch.rand(2, 9, 9, 11).double()
    bias = torch.randn(6).double()
    compare(lambda m, o, w: mmcv.ops.deform_conv2d(m, o, w, 1, 1), [maps, offset, weight])
    modulated = mmcv.ops.modulated_deform_conv2d
    compare(lambda *t: modulated(*t, 1, 1, 1, 1, 1), [maps, offset, mask, weight, bias])

    shapes = torch.tensor([[4, 5], [2, 3]])
    value, weights = torch.randn(2, 26, 3, 8).double(), torch.rand(2, 7, 3, 2, 4).double()
    places = torch.rand(2, 7, 3, 2, 4, 2).double()

    def attend(value, places, weights):
        levels = [tensor.to(value.device) for tensor in (shapes, torch.tensor([0, 20]))]
        return MultiScaleDeformableAttnFunction.apply(value, *levels, places, weights, 64)

    compare(attend, [value, places, weights])


def compare(call, tensors):
    """The call's result and its gradients on both devices, from the same tensors."""
    results = []
    for device in ("cpu", DEVICE):
        leaves = [tensor.to(device, copy=True).requires_grad_() for tensor in tensors]
        result = call(*leaves)
        result.float().square().sum().backward()
        results.append([result.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    narrow = 1e-10 if tensors[0].dtype == torch.float64 else None
    assert_close(results[1], results[0], rtol=narrow, atol=narrow)


@pytest.mark.parametrize("name", NAMES)
def test_detections_equal_those_of_the_cpu(name):
    model = detector(name).double()
    (model.roi_head if hasattr(model, "roi_head") else model.bbox_head).test_cfg.score_thr = 0.0
    if hasattr(model, "roi_head"):
        model.roi_head.mask_head = None  # pastes float32 only
    data = wide_image(model)
    results = []
    for device in ("cpu", DEVICE):
        samples = [sample.to(device) for sample in data["data_samples"]]
        with torch.no_grad():
            images = data["inputs"].double().to(device)
            (sample,) = model.to(device).predict(images, samples, rescale=False)
        results.append(sample.pred_instances.to("cpu"))
    assert len(results[0]) > 0
    assert_close(results[1].bboxes, results[0].bboxes, rtol=0, atol=1e-3)
    assert_close(results[1].scores, results[0].scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(results[1].labels, results[0].labels)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_those_that_the_outputs_mean(name, half):
    model = detector(name).to(DEVICE)
    assert_boxes_equal_float64(model, half)
    with torch.no_grad(), torch.autocast("cuda", half):
        model(**wide_image(model), mode="predict")  # RoI heads too
