"""Box operators against plain loops, through mmcv.ops as mmdet calls them, with ties."""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib
from types import SimpleNamespace

import mmcv.ops
import numpy as np
import pytest
import torch
from torch.testing import assert_close

FALLBACK = SimpleNamespace(**compat.ops.functions())


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
        corners, sizes, scores = (
            (corners / 4).round() * 4,
            (sizes / 4).ceil() * 4,
            scores.mul(5).ceil() / 5,
        )
    return torch.cat((corners, corners + sizes), dim=1), scores


def iou(first, second, offset=0):
    """IoU of two float32 boxes as numpy scalars, in the arithmetic of mmcv's kernels."""
    first, second = first.numpy(), second.numpy()
    one, zero = np.float32(offset), np.float32(0)
    width = max(zero, min(first[2], second[2]) - max(first[0], second[0]) + one)
    height = max(zero, min(first[3], second[3]) - max(first[1], second[1]) + one)
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)


def reference_nms(boxes, scores, threshold, offset=0):
    order = sorted(range(len(boxes)), key=lambda index: -scores[index].item())  # stable
    kept = []
    for index in order:
        if all(iou(boxes[k], boxes[index], offset) <= np.float32(threshold) for k in kept):
            kept.append(index)
    return kept


def reference_soft_nms(boxes, scores, method, threshold, sigma, min_score, offset):
    """mmcv's algorithm on a list that is reordered in place, one element at a time."""
    entries = [[box, score, index] for index, (box, score) in enumerate(zip(boxes, scores.numpy()))]
    done = 0
    while done < len(entries):
        best = max(range(done, len(entries)), key=lambda place: entries[place][1])  # the first
        entries[done], entries[best] = entries[best], entries[done]
        place = done + 1
        while place < len(entries):
            overlap = iou(entries[done][0], entries[place][0], offset)
            weight = np.float32(1)
            if method == "gaussian":
                weight = np.exp(-(overlap * overlap) / np.float32(sigma))
            elif overlap >= np.float32(threshold):
                weight = np.float32(1) - overlap if method == "linear" else np.float32(0)
            entries[place][1] = entries[place][1] * weight
            if entries[place][1] < np.float32(min_score):
                entries[place] = entries[-1]
                entries.pop()
            else:
                place += 1
        done += 1
    dets = [[*box.tolist(), float(score)] for box, score, _ in entries]
    return torch.tensor(dets).view(-1, 5), torch.tensor([entry[2] for entry in entries])


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
        arguments = dict(iou_threshold=0.3, sigma=0.5, min_score=min_score, method=method)
        dets, kept = mmcv.ops.soft_nms(boxes, scores, **arguments, offset=offset)
        expected = reference_soft_nms(boxes, scores, method, 0.3, 0.5, min_score, offset)
        assert kept.tolist() == expected[1].tolist()
        assert_close(dets, expected[0])
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
    order = sorted(range(60), key=lambda index: -scores[index].item())
    expected = []
    while order:
        best = order[0]
        suppressed = [k for k in order[1:] if iou(boxes[best], boxes[k]) >= np.float32(0.4)]
        expected.append([best, *suppressed])
        order = [k for k in order[1:] if k not in suppressed]
    assert [group.tolist() for group in groups] == expected


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for result in (
        mmcv.ops.nms(boxes, scores, 0.5),
        mmcv.ops.soft_nms(boxes, scores),
        mmcv.ops.batched_nms(
            boxes, scores, scores.long(), dict(iou_threshold=0.5), class_agnostic=True
        ),
    ):
        dets, kept = result
        assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    assert mmcv.ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert FALLBACK.nms(boxes, scores, 0.5, 1).shape == (0,)
