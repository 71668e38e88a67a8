"""Comparison of an exported graph with `extract_feat` and mmdet's own decoding and NMS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.model.utils import stack_batch
from torch import Tensor
from torchvision.ops import box_iou

from ropevit_mmdet.deploy.detector import Detections

MAP_TOLERANCE = 1e-4  # of a feature map's largest value, at least of 1
BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 1e-4
IOU_TOLERANCE = 1e-3

# Runs the exported graph: (image [1, 3, H, W], score threshold or None for the file's own).
Run = Callable[[Tensor, float | None], Sequence[Tensor]]


def check_sizes(model: Any) -> list[tuple[int, int]]:
    """Three non-square sizes (height, width): complete windows, ragged windows, ragged patches."""
    patch = model.backbone.patch_size
    window = model.backbone.window_size or max(model.backbone.pretrain_grid)
    complete = (2 * window * patch, window * patch)
    ragged = (-(-5 * window // 4) * patch, -(-7 * window // 4) * patch)
    uneven = (-(-2 * window // 3) * patch + 1, -(-4 * window // 3) * patch + patch // 2)
    return [complete, ragged, uneven]


def example_image(size: tuple[int, int]) -> Tensor:
    """Smooth blobs with a little noise, [1, 3, height, width], like a normalized image."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, *(-(-side // 24) + 1 for side in size), generator=generator)
    blobs = F.interpolate(coarse, size=size, mode="bilinear")
    return blobs + 0.1 * torch.randn(1, 3, *size, generator=generator)


def compare_features(model: Any, run: Run, size: tuple[int, int]) -> tuple[bool, str]:
    """Whether the feature maps of an example image agree, and the difference as text."""
    image = example_image(size)
    with torch.no_grad():
        expected = model.extract_feat(image)
    actual = run(image, None)
    largest = float("inf")
    if [value.shape for value in expected] == [value.shape for value in actual]:
        largest = max(
            (a - b).abs().max().item() / max(1.0, a.abs().max().item())
            for a, b in zip(expected, actual)
        )
    text = f"{len(expected)} maps, largest difference {largest:.1e}"
    return largest <= MAP_TOLERANCE, f"{size[0]} x {size[1]} pixels, {text}"


def compare_detections(model: Any, run: Run, size: tuple[int, int]) -> tuple[bool, str]:
    """Whether the detections in an example image agree, and the difference as text.

    If PyTorch detects nothing at the config's score threshold, both use the threshold 0.
    """
    image, cfg, at = example_image(size), copy.deepcopy(model.bbox_head.test_cfg), ""
    expected = detections(model, image, cfg)
    if not len(expected.scores):
        cfg.score_thr, at = 0.0, " at threshold 0"
        expected = detections(model, image, cfg)
    actual = Detections(*run(image, cfg.score_thr if at else None))
    boxes, scores = differences(expected, actual, cfg)
    known = differences_to(actual, detections(model, image, cfg, with_nms=False))
    boxes, scores = (max([one, *more.tolist()]) for one, more in zip((boxes, scores), known))
    text = f"{len(expected.scores)} detections{at}"
    text += f", largest difference {boxes:.1e} pixels, {scores:.1e} in scores"
    equal = boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE
    return equal, f"{size[0]} x {size[1]} pixels, {text}"


@torch.no_grad()
def detections(
    model: Any, image: Tensor, test_cfg: Any = None, *, with_nms: bool = True
) -> Detections:
    """mmdet's detections in a normalized image [1, 3, H, W], boxes in its pixels."""
    preprocessor, head = model.data_preprocessor, model.bbox_head
    sample = DetDataSample(metainfo=dict(img_shape=tuple(image.shape[-2:]), scale_factor=(1, 1)))
    padded = stack_batch([image[0]], preprocessor.pad_size_divisor, preprocessor.pad_value)
    outputs = head(model.extract_feat(padded))
    (result,) = head.predict_by_feat(
        *outputs, batch_img_metas=[sample.metainfo], cfg=test_cfg, with_nms=with_nms
    )
    return Detections(result.bboxes, result.scores, result.labels)


def differences(
    expected: Detections, actual: Detections, test_cfg: Any = None
) -> tuple[float, float]:
    """The largest differences of boxes (pixels) and scores, in both directions.

    With a `test_cfg`, a detection without a match is excused if rounding decides about it there.
    """
    boxes = scores = 0.0
    for one, other in ((expected, actual), (actual, expected)):
        distances, errors = differences_to(one, other)
        if test_cfg is not None:
            excused = (distances > BOX_TOLERANCE) & _are_ties(one, other, test_cfg)
            distances, errors = distances[~excused], errors[~excused]
        boxes, scores = max([boxes, *distances.tolist()]), max([scores, *errors.tolist()])
    return boxes, scores


def differences_to(one: Detections, other: Detections) -> tuple[Tensor, Tensor]:
    """Differences of boxes and scores, each [N], to the nearest detection of the same label."""
    boxes = (one.boxes[:, None] - other.boxes).abs().amax(dim=2)  # [N, M]
    scores = (one.scores[:, None] - other.scores).abs()
    others, inf = one.labels[:, None] != other.labels, float("inf")
    boxes, scores = (
        F.pad(part.masked_fill(others, inf), (0, 1), value=inf) for part in (boxes, scores)
    )
    match = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE).argmin(1, keepdim=True)
    return boxes.gather(1, match)[:, 0], scores.gather(1, match)[:, 0]


def _are_ties(one: Detections, other: Detections, test_cfg: Any) -> Tensor:
    """Where rounding decides, [N]: at the score threshold, at `max_per_img`, or in NMS.

    In NMS it decides between overlapping boxes of equal scores, and at `iou_threshold`.
    """
    cuts = [one.scores.new_tensor(test_cfg.get("score_thr", 0))]
    cuts += [other.scores.min()] if len(other.scores) >= test_cfg.max_per_img else []
    is_cut = [(one.scores - cut).abs() <= SCORE_TOLERANCE for cut in cuts]
    overlap = box_iou(one.boxes, other.boxes) - test_cfg.nms.iou_threshold  # [N, M]
    if not test_cfg.nms.get("class_agnostic", False):
        overlap[one.labels[:, None] != other.labels] = -1
    equal = (one.scores[:, None] - other.scores).abs() <= SCORE_TOLERANCE
    rivals = (overlap.abs() <= IOU_TOLERANCE) | (overlap > 0) & equal
    return torch.stack([*is_cut, rivals.any(dim=1)]).any(dim=0)
