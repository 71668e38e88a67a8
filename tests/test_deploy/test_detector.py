"""The exportable form of RetinaNet equals mmdet's decoding and NMS."""

import pytest
import torch
from mmcv.ops import nms
from torch import nn

from ropevit_mmdet.deploy.check import check_sizes, detections, example_image
from ropevit_mmdet.deploy.detector import DynamicDetector, unsupported_detector
from tests.exportable_models import small_retinanet


@pytest.mark.parametrize(
    ("settings", "fewest", "most"),
    [
        (dict(), 3, 100),
        (dict(score_thr=0.5), 3, 100),
        (dict(score_thr=0.9999), 0, 0),
        (dict(nms_pre=7, max_per_img=3), 3, 3),
        (dict(nms=dict(type="nms", iou_threshold=0.2, class_agnostic=True)), 3, 100),
        (dict(nms=dict(type="nms", iou_threshold=0.6), min_bbox_size=-1), 3, 100),
    ],
)
def test_dynamic_detector_equals_mmdet(settings, fewest, most):
    model = small_retinanet()
    model.bbox_head.test_cfg.update(settings)
    graph = DynamicDetector(model)
    for size in [*check_sizes(model), (113, 30)]:
        image = example_image(size)
        expected = detections(model, image)
        with torch.no_grad():
            actual = graph(image)
        assert torch.equal(actual.labels, expected.labels)
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-3)
        assert fewest <= len(expected.scores) <= most


def test_dynamic_detector_clips_boxes_to_the_image_not_to_its_padding():
    model = small_retinanet()
    nn.init.constant_(model.bbox_head.retina_reg.bias, 1.0)  # large boxes
    with torch.no_grad():
        boxes = DynamicDetector(model)(example_image((50, 60))).boxes
    assert boxes[:, 2].max() == 60 and boxes[:, 3].max() == 50


def test_unsupported_detector_lists_every_setting():
    model = small_retinanet()
    for type_ in ("nms", nms):
        model.bbox_head.test_cfg.nms.type = type_
        assert unsupported_detector(model) == []
    model.bbox_head.test_cfg.update(nms=dict(type="soft_nms"), min_bbox_size=4, nms_pre=-1)
    findings = [finding.split("=")[0] for finding in unsupported_detector(model)]
    assert findings == ["test_cfg.nms", "test_cfg.nms_pre", "test_cfg.min_bbox_size"]
    assert unsupported_detector(nn.Identity()) == ["Identity (only RetinaNet with RetinaHead)"]
