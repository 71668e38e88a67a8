"""The exportable form of detectors equals mmdet's decoding, NMS and masks."""

import pytest
import torch
from mmcv.ops import nms
from torch import nn

from ropevit_mmdet.deploy.check import BATCHES, check_sizes, compare_detections, example_images
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.heads import graph_class
from tests.exportable_models import QUERIES, eager, small_detector

DENSE = ("retinanet", "fcos", "atss", "rtmdet")
TWO_STAGE = ("maskrcnn", "cascade-maskrcnn")


def assert_equal(model, *, sizes=None, pasted=False):
    graph = DynamicDetector(model, pasted=pasted)
    texts = []
    for size in sizes or check_sizes(model):
        for batch in BATCHES:
            equal, text = compare_detections(model, eager(graph), example_images(size, batch))
            assert equal, text
            texts.append(text)
    return texts


@pytest.mark.parametrize("name", DENSE + TWO_STAGE + QUERIES)
def test_graph_equals_mmdet_in_batches(name):
    model = small_detector(name)
    texts = assert_equal(model, sizes=[*check_sizes(model), (113, 30)])
    assert not any(" 0 detections" in text or "at threshold" in text for text in texts)
    assert ("mask IoU" in texts[0]) == (name in (*TWO_STAGE, "eomt"))


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("retinanet", dict(score_thr=0.5), 100),
        ("retinanet", dict(nms_pre=7, max_per_img=3), 3),
        ("retinanet", dict(nms=dict(iou_threshold=0.2, class_agnostic=True)), 100),
        ("fcos", dict(nms=dict(type="nms", iou_threshold=0.3), min_bbox_size=-1), 100),
        ("atss", dict(nms=dict(type="nms", iou_threshold=0.9, split_thr=10)), 100),
        ("maskrcnn", dict(nms=dict(iou_threshold=0.2, class_agnostic=True)), 20),
        ("cascade-maskrcnn", dict(score_thr=0.3, max_per_img=4, mask_thr_binary=0.6), 4),
    ],
)
def test_graph_follows_the_settings(name, settings, most):
    model = small_detector(name)
    graph = DynamicDetector(model)
    graph.head.test_cfg.update(settings)
    graph = DynamicDetector(model)
    for size in check_sizes(model)[:2]:
        images = example_images(size, 2)
        equal, text = compare_detections(model, eager(graph), images)
        assert equal, text
        dets, labels = eager(graph)(images)[:2]
        assert dets.shape == (2, graph.head.test_cfg.max_per_img, 5)
        assert 0 < (labels >= 0).sum(dim=1).max() <= most


def test_eomt_without_stuff_and_best_first():
    model = small_detector("eomt")
    model.panoptic_head.num_things_classes = model.panoptic_fusion_head.num_things_classes = 2
    images = example_images((57, 100), 2)
    equal, text = compare_detections(model, eager(DynamicDetector(model)), images)
    dets, labels, masks = eager(DynamicDetector(model))(images)
    assert equal, text
    assert -1 in labels and labels.max() == 1 and not masks[labels == -1].any()
    assert (dets[..., 4].diff() <= 0).all() and (dets[labels == -1] == 0).all()


@pytest.mark.parametrize("name", ["fcos", "maskrcnn"])
def test_graph_without_detections(name):
    model = small_detector(name)
    graph = DynamicDetector(model)
    images = example_images((57, 100), 2)
    outputs = eager(graph)(images, 2.0)
    assert (
        (outputs[1] == -1).all() and not outputs[0].any() and not any(map(torch.any, outputs[2:]))
    )
    graph.head.test_cfg.score_thr = 1.0
    graph.head.score_thr.fill_(1.0)
    equal, text = compare_detections(model, eager(graph), images)
    assert equal and "detections at threshold" in text and " 0 detections" not in text


@pytest.mark.parametrize("name", TWO_STAGE)
def test_pasted_masks_equal_mmdet(name):
    model = small_detector(name)
    texts = assert_equal(model, sizes=[(70, 98)], pasted=True)
    assert all("mask IoU" in text and " 0 detections" not in text for text in texts)


@pytest.mark.parametrize("name", ["maskrcnn", "dino", "eomt"])
def test_nothing_is_detected_in_an_image_with_a_nan_pixel(name):
    graph, images = DynamicDetector(small_detector(name)), example_images((57, 100), 3)
    expected = eager(graph)(images)
    images[1, 0, 3, 4] = float("nan")
    outputs = eager(graph)(images)
    assert (outputs[1][1] == -1).all() and (outputs[1][::2] >= 0).any()
    for actual, one in zip(outputs, expected):
        assert one.dtype == actual.dtype and not actual[1].clamp(min=0).any()
        torch.testing.assert_close(actual[::2], one[::2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("bgr", [True, False])
def test_normalization_inside_takes_rgb_pixels(bgr):
    model = small_detector("fcos")
    model.data_preprocessor._channel_conversion = not bgr
    equal, text = compare_detections(
        model,
        eager(DynamicDetector(model, normalize=True)),
        example_images((57, 100), 2, pixels=True),
    )
    assert equal and " 0 detections" not in text


def test_unsupported_settings_are_listed():
    def findings(model):
        return [finding.split("=")[0] for finding in graph_class(model)[1]]

    model = small_detector()
    for type_ in ("nms", nms):
        model.bbox_head.test_cfg.nms.type = type_
        assert not findings(model)
    model.bbox_head.test_cfg.update(nms=dict(type="soft_nms"), min_bbox_size=4, nms_pre=-1)
    assert findings(model) == ["test_cfg.nms_pre", "test_cfg.nms", "test_cfg.min_bbox_size"]
    model = small_detector("maskrcnn")
    model.rpn_head.test_cfg.nms = dict(type="soft_nms")
    model.roi_head.mask_head = nn.Identity()
    model.roi_head.bbox_roi_extractor.roi_layers[1] = nn.Identity()
    assert findings(model) == ["test_cfg.rpn.nms", "Identity"]
    model = small_detector("eomt")
    model.panoptic_fusion_head.test_cfg.instance_on = False
    assert findings(model) == ["test_cfg.instance_on"]
    assert "Identity with NoneType" in graph_class(nn.Identity())[1][0]
