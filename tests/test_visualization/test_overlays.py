"""Overlays: enlarged small images, masks where they belong, ground truth at the left."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torchvision.utils import draw_bounding_boxes

from ropevit_mmdet.visualization import contact_sheet, draw_sample, overlays


def instances(*boxes, masks=None, **fields):
    """Objects of the first class."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long), **fields)
    if masks is not None:
        found.masks = masks
    return found


def gray(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("size", "enlarged"), [((60, 80), (720, 960)), ((480, 300), (960, 600)), ((300, 481),) * 2]
)
def test_small_images_are_enlarged_with_their_masks(size, enlarged):
    mask = np.zeros((1, 40, 70), bool)  # a mask without the padding of the image
    mask[:, 20:40, 30:60] = True
    found = instances((30, 20, 600, 40), masks=mask, scores=torch.tensor([0.0]))
    overlay = draw_sample(gray(*size), DetDataSample(pred_instances=found), ["thing"])
    assert overlay.shape == (*enlarged, 3)
    factor = enlarged[0] // size[0]
    assert (overlay[38 * factor, 55 * factor] != 128).any()
    assert (overlay[55 * factor, 65 * factor] == 128).all()


def test_an_image_without_detections_is_unchanged():
    masks = torch.zeros(0, 100, 500, dtype=torch.bool)
    found = instances(scores=torch.zeros(0), masks=masks)
    for sample in (DetDataSample(pred_instances=found), DetDataSample(gt_instances=InstanceData())):
        overlay = draw_sample(gray(100, 500), sample, ["thing"])
        assert overlay.shape == (100, 500, 3) and (overlay == 128).all()


def test_ground_truth_is_at_the_left_of_the_prediction(monkeypatch):
    texts = []

    def draw(image, boxes, labels, *args, **settings):
        texts.extend(labels)
        return draw_bounding_boxes(image, boxes, labels, *args, **settings)

    monkeypatch.setattr(overlays, "draw_bounding_boxes", draw)
    sample = DetDataSample(
        gt_instances=instances((10, 10, 490, 90)),
        ignored_instances=instances((100, 40, 110, 60)),
        pred_instances=instances(scores=torch.zeros(0)),
    )
    overlay = draw_sample(gray(100, 500), sample, ["$thing"])
    assert overlay.shape == (100, 1000, 3)
    left, right = overlay[:, :500], overlay[:, 500:]
    assert (left != 128).any() and (right == 128).all()
    assert texts == ["$thing", "ignored"]


def test_a_contact_sheet_fits_every_image():
    images = [gray(50, 100, 10), gray(300, 100, 20)]
    sheet = contact_sheet(images * 3, cell=120)
    assert sheet.shape == (2 * 122 + 2, 4 * 122 + 2, 3)
    assert (sheet[64, 64] == 10).all() and (sheet[64, 186] == 20).all() and (sheet[0] == 255).all()
