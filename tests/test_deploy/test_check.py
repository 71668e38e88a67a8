"""The comparison of an exported graph with PyTorch finds differences and excuses ties."""

import pytest
import torch
from mmengine.config import ConfigDict

from ropevit_mmdet.deploy.check import Detections, differences

CFG = ConfigDict(score_thr=0.05, nms=dict(iou_threshold=0.5), max_per_img=9)
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
BASE = Detections(BOXES, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]))
FIRST = Detections(*(part[:1] for part in BASE))
INF = float("inf")


@pytest.mark.parametrize(
    ("actual", "boxes", "scores"),
    [
        (BASE, 0, 0),
        (BASE._replace(boxes=BOXES + 2), 2, 0),
        (BASE._replace(boxes=BOXES + torch.tensor([[0.0], [200.0]])), 200, 0),
        (BASE._replace(scores=torch.tensor([0.9, 0.6])), 0, 0.1),
        (BASE._replace(labels=torch.tensor([0, 2])), INF, 0),
        (FIRST, INF, 0),
    ],
)
def test_differences_finds(actual, boxes, scores):
    assert differences(BASE, actual, CFG) == (boxes, pytest.approx(scores))
    assert differences(actual, BASE, CFG) == (boxes, pytest.approx(scores))


def test_differences_excuses_what_rounding_decides():
    at_threshold = BASE._replace(scores=torch.tensor([0.9, 0.05001]))
    assert differences(at_threshold, FIRST, CFG) == (0, 0)
    twin = Detections(BOXES[1:] + 1, torch.tensor([0.50001]), torch.tensor([1]))
    other_of_two = Detections(*(torch.cat(parts) for parts in zip(FIRST, twin)))
    assert differences(BASE, other_of_two, CFG) == (0, 0)
