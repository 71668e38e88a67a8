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
    image, threshold = example_image(size), None
    expected = detections(model, image)
    if not len(expected.scores):
        threshold, expected = 0.0, detections(model, image, 0.0)
    actual = Detections(*run(image, threshold))
    boxes, scores = differences(expected, actual, model.bbox_head.test_cfg)
    text = f"{len(expected.scores)} detections{'' if threshold is None else ' at threshold 0'}"
    text += f", largest difference {boxes:.1e} pixels, {scores:.1e} in scores"
    equal = boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE
    return equal, f"{size[0]} x {size[1]} pixels, {text}"


@torch.no_grad()
def detections(model: Any, image: Tensor, score_thr: float | None = None) -> Detections:
    """mmdet's detections in a normalized image [1, 3, H, W], boxes in its pixels."""
    preprocessor, head = model.data_preprocessor, model.bbox_head
    sample = DetDataSample(metainfo=dict(img_shape=tuple(image.shape[-2:]), scale_factor=(1, 1)))
    padded = stack_batch([image[0]], preprocessor.pad_size_divisor, preprocessor.pad_value)
    cfg = copy.deepcopy(head.test_cfg)
    if score_thr is not None:
        cfg.score_thr = score_thr
    outputs = head(model.extract_feat(padded))
    (result,) = head.predict_by_feat(*outputs, batch_img_metas=[sample.metainfo], cfg=cfg)
    return Detections(result.bboxes, result.scores, result.labels)


def differences(expected: Detections, actual: Detections, test_cfg: Any) -> tuple[float, float]:
    """The largest differences of boxes (pixels) and scores to the nearest detection of the label.

    At most one detection in twenty may have no match because of rounding alone (see `_is_tie`).
    """
    boxes = scores = 0.0
    for one, other in ((expected, actual), (actual, expected)):
        ties = []
        for box, score, label in zip(*one):
            same = other.labels == label
            distances = (other.boxes[same] - box).abs().amax(dim=1)
            nearest = distances.min().item() if len(distances) else float("inf")
            if nearest > BOX_TOLERANCE and _is_tie(box, score, label, other, test_cfg):
                ties.append(nearest)
                continue
            boxes = max(boxes, nearest)
            if nearest <= BOX_TOLERANCE:
                matched = other.scores[same][distances.argmin()]
                scores = max(scores, (matched - score).abs().item())
        if len(ties) > max(1, len(one.scores) // 20):
            boxes = max(boxes, *ties)
    return boxes, scores


def _is_tie(box: Tensor, score: Tensor, label: Tensor, other: Detections, test_cfg: Any) -> bool:
    """Whether rounding decides: score at the threshold or `max_per_img` cut, or a tie in NMS."""
    cuts = [score.new_tensor(test_cfg.get("score_thr", 0))]
    if len(other.scores) >= test_cfg.max_per_img:
        cuts.append(other.scores.min())
    if any((score - cut).abs() <= SCORE_TOLERANCE for cut in cuts):
        return True
    rivals = other.labels == label
    if test_cfg.nms.get("class_agnostic", False):
        rivals = torch.ones_like(rivals)
    overlap = box_iou(box[None], other.boxes[rivals])[0] - test_cfg.nms.iou_threshold
    tied = (other.scores[rivals] - score).abs() <= SCORE_TOLERANCE
    return bool(((overlap > -1e-3) & (tied | (overlap.abs() <= 1e-3))).any())
