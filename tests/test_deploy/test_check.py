"""The comparison of an exported graph with PyTorch finds differences and excuses only ties."""

import pytest
import torch
from mmengine.config import ConfigDict

from ropevit_mmdet.deploy.check import Detections, differences, found

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
BASE = Detections(BOXES, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]))
FIRST = Detections(*(part[:1] for part in BASE[:3]))
INF = float("inf")
CFG = ConfigDict(score_thr=0.05, max_per_img=9, nms=dict(iou_threshold=0.5))


@pytest.mark.parametrize(
    ("actual", "boxes", "scores"),
    [
        (BASE, 0, 0),
        (BASE._replace(boxes=BOXES + 1), 1, 0),
        (BASE._replace(boxes=BOXES + torch.tensor([[0.0], [200.0]])), 200, 0),
        (BASE._replace(scores=torch.tensor([0.9, 0.6])), 0, 0.1),
        (BASE._replace(labels=torch.tensor([0, 2])), INF, INF),
        (FIRST, INF, INF),
        (Detections(*(part[:0] for part in BASE[:3])), INF, INF),
    ],
)
def test_differences_finds(actual, boxes, scores):
    expected = (boxes, pytest.approx(scores), 0)
    assert differences(BASE, actual) == differences(actual, BASE) == expected


@pytest.mark.parametrize(
    ("box", "score", "changes", "excused"),
    [
        ((20, 20, 40, 30), 0.3, {}, True),  # its overlap is the threshold
        ((20, 20, 40, 30), 0.3, dict(nms=dict(iou_threshold=0.4)), False),
        ((20, 20, 40, 38), 0.50001, {}, True),
        ((20, 20, 40, 38), 0.4, {}, False),
        ((60, 60, 70, 70), 0.4, {}, False),
        ((60, 60, 70, 70), 0.05, {}, True),  # at the score threshold
        ((60, 60, 70, 70), 0.50001, dict(max_per_img=2), True),
        ((60, 60, 70, 70), 0.6, dict(max_per_img=2), False),
    ],
)
def test_differences_excuses_a_detection_about_which_rounding_decides(box, score, changes, excused):
    added = (torch.tensor([box]).float(), torch.tensor([score]), torch.tensor([1]))
    more = Detections(*(torch.cat(parts) for parts in zip(BASE[:3], added)))
    cfg = ConfigDict(CFG, **changes)
    assert (differences(BASE, more, cfg) == differences(more, BASE, cfg) == (0, 0, 0)) == excused
    assert differences(BASE, more)[0] > 1


def test_differences_of_masks():
    """One pixel is left to rounding; the rest is 1 - IoU."""
    masks = torch.zeros(2, 50, 50, dtype=torch.bool)
    masks[:, :10, :10] = True
    changed = masks.clone()
    changed[1, 20, :5] = True
    one, other = BASE._replace(masks=masks), BASE._replace(masks=changed)
    assert differences(one, one) == (0, 0, 0)
    assert differences(one, other) == (0, 0, pytest.approx(4 / 105))
    assert differences(one, other._replace(masks=masks ^ (changed & masks)))[2] > 0.9


@pytest.mark.parametrize("masks", [torch.zeros(3, 8, 8, dtype=torch.bool), torch.zeros(3, 28, 28)])
def test_an_image_without_detections_has_no_masks(masks):
    outputs = (torch.zeros(3, 5), torch.full((3,), -1), masks)
    assert found(outputs, (20, 30), 0.5).masks.shape == (0, 20, 30)
