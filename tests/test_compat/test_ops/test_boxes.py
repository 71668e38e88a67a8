"""Box operators against plain loops, through mmcv.ops as mmdet calls them, with ties."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib

import mmcv.ops
import numpy as np
import pytest
import torch
from torch.testing import assert_close

FALLBACK = compat.ops.fallback_module()


@pytest.fixture
def fallback_only(monkeypatch):
    """mmcv's wrapper over the fallback, also where mmcv is compiled and refuses a dtype."""
    monkeypatch.setattr(importlib.import_module("mmcv.ops.nms"), "ext_module", FALLBACK)


def random_boxes(count, seed=0, *, ties=False):
    """Boxes [N, 4] within 64 pixels and scores [N]; with ties, coarse and often equal."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    sizes = torch.rand(count, 2, generator=generator) * 23 + 1
    scores = torch.rand(count, generator=generator)
    if ties:
        corners, sizes = (corners / 4).round() * 4, (sizes / 4).ceil() * 4
        scores = scores.mul(5).ceil() / 5
    return torch.cat((corners, corners + sizes), dim=1), scores


def overlaps(boxes, offset=0):
    """IoU of float32 boxes with each other, in the arithmetic of mmcv's kernels."""
    x1, y1, x2, y2 = boxes.numpy().T
    one, zero = np.float32(offset), np.float32(0)
    width = np.maximum(np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1) + one, zero)
    height = np.maximum(np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1) + one, zero)
    areas = (x2 - x1 + one) * (y2 - y1 + one)
    return width * height / (np.add.outer(areas, areas) - width * height)


def by_score(scores):
    return sorted(range(len(scores)), key=lambda index: -scores[index].item())  # stable


def reference_nms(boxes, scores, threshold, offset=0):
    iou, kept = overlaps(boxes, offset), []
    for index in by_score(scores):
        if all(iou[other, index] <= np.float32(threshold) for other in kept):
            kept.append(index)
    return kept


def reference_soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset):
    """mmcv's algorithm on a list of indices that is reordered in place, one at a time."""
    iou, scores = overlaps(boxes, offset), scores.numpy().copy()
    order, done = list(range(len(boxes))), 0
    while done < len(order):
        best = max(range(done, len(order)), key=lambda place: scores[order[place]])  # the first
        order[done], order[best] = order[best], order[done]
        place = done + 1
        while place < len(order):
            overlap, weight = iou[order[done], order[place]], np.float32(1)
            if method == "gaussian":
                weight = np.exp(-(overlap * overlap) / np.float32(sigma))
            elif overlap >= np.float32(iou_threshold):
                weight = np.float32(1) - overlap if method == "linear" else np.float32(0)
            scores[order[place]] *= weight
            if scores[order[place]] < np.float32(min_score):
                order[place] = order[-1]
                order.pop()
            else:
                place += 1
        done += 1
    return torch.cat((boxes, torch.from_numpy(scores)[:, None]), dim=1)[order], order


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.7])
def test_nms_order(threshold, offset, ties):
    for seed in range(2):
        boxes, scores = random_boxes(60, seed, ties=ties)
        dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
        assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)
        assert_close(dets, torch.cat((boxes, scores[:, None]), 1)[kept], rtol=0, atol=0)
    assert len(kept) < len(boxes) or threshold == 0.7


@pytest.mark.parametrize(("threshold", "kept"), [(0.6, [0, 1]), (0.599, [0])])
def test_nms_at_exactly_the_threshold(threshold, kept):
    """6 / 10 in float32 is above 0.6 in double: mmcv rounds the threshold too and keeps both."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 6, 1]])
    assert mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold)[1].tolist() == kept


@pytest.mark.usefixtures("fallback_only")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_nms_other_types(dtype):
    boxes, scores = random_boxes(60, 3)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.5)
    assert kept.tolist() == reference_nms(boxes.float(), scores.float(), 0.5)
    assert dets.dtype == dtype
    # mixed, as under AMP; the wrapper could not concatenate them, so the op itself is asked
    assert FALLBACK.nms(boxes, scores.float(), 0.5).tolist() == kept.tolist()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("method", "ties"), [("linear", False), ("linear", True), ("naive", True), ("gaussian", False)]
)
def test_soft_nms(method, ties, offset):
    for seed, min_score in ((0, 1e-3), (1, 0.05), (2, 0.3)):
        boxes, scores = random_boxes(50, seed, ties=ties)
        settings = dict(iou_threshold=0.3, sigma=0.5, min_score=min_score, method=method)
        dets, kept = mmcv.ops.soft_nms(boxes, scores, **settings, offset=offset)
        expected, order = reference_soft_nms(boxes, scores, **settings, offset=offset)
        assert kept.tolist() == order
        assert_close(dets, expected)
    assert len(kept) < len(boxes)


def test_soft_nms_keeps_what_decays_to_exactly_the_minimum():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU one half
    scores = torch.tensor([0.75, 0.5])
    assert len(mmcv.ops.soft_nms(boxes, scores, 0.3, min_score=0.25)[1]) == 2
    assert len(mmcv.ops.soft_nms(boxes, scores, 0.3, min_score=0.26)[1]) == 1


@pytest.mark.parametrize("ties", [False, True])
def test_nms_match(ties):
    boxes, scores = random_boxes(60, 2, ties=ties)
    groups = mmcv.ops.nms_match(torch.cat((boxes, scores[:, None]), dim=1), 0.4)
    iou, order, expected = overlaps(boxes), by_score(scores), []
    while order:
        expected.append([k for k in order if k == order[0] or iou[order[0], k] >= np.float32(0.4)])
        order = [k for k in order if k not in expected[-1]]
    assert [group.tolist() for group in groups] == expected


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    agnostic = dict(iou_threshold=0.5, class_agnostic=True)
    for dets, kept in (
        mmcv.ops.nms(boxes, scores, 0.5),
        mmcv.ops.soft_nms(boxes, scores),
        mmcv.ops.batched_nms(boxes, scores, scores.long(), agnostic),
    ):
        assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    assert mmcv.ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert FALLBACK.nms(boxes, scores, 0.5, 1).shape == (0,)
