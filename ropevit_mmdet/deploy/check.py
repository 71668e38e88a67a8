"""Comparison of an exported graph with `extract_feat` and mmdet's own prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.model.utils import stack_batch
from torch import Tensor
from torchvision.ops import box_iou

from ropevit_mmdet.deploy.heads import output_settings
from ropevit_mmdet.deploy.heads.two_stage import paste

MAP_TOLERANCE = 1e-4  # of a feature map's largest value, at least of 1
BOX_TOLERANCE = 1e-2  # pixels
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3  # of mask IoU
TOLERANCES = (BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE)
IOU_TOLERANCE = 1e-3
BATCHES = (1, 2, 5)
FIELDS = ("bboxes", "scores", "labels", "masks")

# Runs the exported graph: (images [B, 3, H, W], score threshold or None for the file's own).
Run = Callable[[Tensor, "float | None"], Sequence[Tensor]]


class Detections(NamedTuple):
    """In one image, best first: boxes [N, 4] (x1, y1, x2, y2) in pixels, scores [N], labels [N]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None  # [N, H, W], bool


def check_sizes(model: Any) -> list[tuple[int, int]]:
    """Three non-square sizes (height, width): complete windows, ragged windows, ragged patches."""
    patch = model.backbone.patch_size
    window = model.backbone.window_size or max(model.backbone.pretrain_grid)
    complete = (2 * window * patch, window * patch)
    ragged = (-(-5 * window // 4) * patch, -(-7 * window // 4) * patch)
    uneven = (-(-2 * window // 3) * patch + 1, -(-4 * window // 3) * patch + patch // 2)
    return [complete, ragged, uneven]


def example_images(size: tuple[int, int], batch: int = 1, *, pixels: bool = False) -> Tensor:
    """Smooth blobs with a little noise, [batch, 3, height, width], each image another.

    They are like normalized images, or `pixels`, uint8.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 3, *(-(-side // 24) + 1 for side in size), generator=generator)
    blobs = F.interpolate(coarse, size=size, mode="bilinear")
    images = blobs + 0.1 * torch.randn(batch, 3, *size, generator=generator)
    return (images * 64 + 128).clamp(0, 255).byte() if pixels else images


def compare_features(model: Any, run: Run, images: Tensor) -> tuple[bool, str]:
    """Whether the feature maps of images agree, and the difference as text."""
    expected, actual = feature_maps(model, images), run(images, None)
    largest = float("inf")
    if [value.shape for value in expected] == [value.shape for value in actual]:
        pairs = zip(expected, actual)
        largest = max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs)
    text = f"{len(expected)} maps, largest difference {largest:.1e}"
    return largest <= MAP_TOLERANCE, f"{_describe(images)}, {text}"


@torch.no_grad()
def feature_maps(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """What `extract_feat` returns for images [B, 3, H, W]."""
    return model.extract_feat(_normalized(model, images))


def compare_detections(model: Any, run: Run, images: Tensor) -> tuple[bool, str]:
    """Whether the detections in images agree, and the difference as text.

    If PyTorch detects nothing at the config's score threshold, both use a lower one that leaves
    the best `max_per_img` candidates or a few more.
    """
    changes: dict[str, Any] = {}
    expected = predict(model, images)
    if not any(len(one.scores) for one in expected):
        best = predict(model, images, masks=False, score_thr=0.0, nms=None)
        lowest = [float(one.scores.min()) for one in best if len(one.scores)]
        changes = {"score_thr": 0.999 * min(lowest, default=0.0)}
        expected = predict(model, images, **changes)
    cfg = {**output_settings(model), **changes}
    size = (images.shape[2], images.shape[3])
    mask_thr = cfg.get("mask_thr_binary", 0.5)
    outputs = zip(*run(images, changes.get("score_thr")))
    actual = [found(one, size, mask_thr) for one in outputs]
    errors = [differences(*pair, cfg) for pair in zip(expected, actual, strict=True)]
    if any(differences(*pair) > worst for pair, worst in zip(zip(expected, actual), errors)):
        # of those that are excused, the file's must be among PyTorch's candidates before NMS
        known = predict(model, images, masks=False, **changes, nms=None, max_per_img=10**6)
        bare = [one._replace(masks=None) for one in actual]
        errors += [_largest(differences_to(*pair)) for pair in zip(bare, known)]
    worst = tuple(map(max, zip(*errors)))
    text = f"{sum(len(one.scores) for one in expected)} detections"
    text += f" at threshold {changes['score_thr']:.1e}" if changes else ""
    text += ", largest difference {:.1e} pixels, {:.1e} in scores".format(*worst)
    text += f", {worst[2]:.1e} in mask IoU" if expected[0].masks is not None else ""
    equal = all(error <= most for error, most in zip(worst, TOLERANCES))
    return equal, f"{_describe(images)}, {text}"


def found(
    outputs: Sequence[Tensor],
    size: tuple[int, int],
    mask_thr: float,
    scale: Sequence[float] = (1.0, 1.0),
) -> Detections:
    """The detections in an image, from the outputs of a graph.

    Args:
        outputs: of one image: dets [K, 5], labels [K] and perhaps masks [K, ...].
        size: (height, width) of the image that boxes and masks are for, in pixels.
        mask_thr: threshold of the probabilities of masks.
        scale: width and height of the graph's image, of that of `size`.
    """
    dets, labels, *masks = outputs
    valid = labels >= 0
    boxes = dets[valid, :4] / dets.new_tensor([*scale, *scale])
    pasted = [part[valid] for part in masks]
    if pasted and pasted[0].dtype == torch.bool:
        height, width = (round(side * factor) for side, factor in zip(size, (scale[1], scale[0])))
        inside = pasted[0][:, None, :height, :width]  # without the padding of a pipeline
        pasted = [F.interpolate(inside.float(), size)[:, 0] > 0]  # N may be 0
    elif pasted:  # a few at a time: they are as large as the image
        parts = zip(pasted[0].split(8), boxes.split(8))
        pasted = [torch.cat([paste(mask, box, size) >= mask_thr for mask, box in parts])]
    return Detections(boxes, dets[valid, 4], labels[valid], *pasted)


@torch.no_grad()
def predict(model: Any, images: Tensor, *, masks: bool = True, **changes: Any) -> list[Detections]:
    """mmdet's detections in images [B, 3, H, W], with changes of the `test_cfg`."""
    cfg, head = output_settings(model), getattr(model, "roi_head", model)
    preprocessor, size, old = model.data_preprocessor, tuple(images.shape[-2:]), dict(cfg)
    mask_head = getattr(head, "mask_head", None)
    inputs = stack_batch(
        list(_normalized(model, images)), preprocessor.pad_size_divisor, preprocessor.pad_value
    )
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    meta["batch_input_shape"] = tuple(inputs.shape[-2:])
    samples = [DetDataSample(metainfo=meta) for _ in images]
    cfg.update(changes)
    try:
        if mask_head is not None and not masks:
            head.mask_head = None
        results = [one.pred_instances for one in model.predict(inputs, samples, rescale=False)]
    finally:
        for key in changes:
            cfg.pop(key)
        cfg.update(old)
        if mask_head is not None:
            head.mask_head = mask_head
    return [Detections(*(one.get(key) for key in FIELDS)) for one in results]


def _normalized(model: Any, images: Tensor) -> Tensor:
    """Applies the data preprocessor to uint8 RGB images; other images are normalized already."""
    if images.dtype != torch.uint8:
        return images
    inputs = list(images.flip(1))  # mmdet reads BGR
    padded = model.data_preprocessor(dict(inputs=inputs, data_samples=None))["inputs"]
    return padded[..., : images.shape[-2], : images.shape[-1]]


def _describe(images: Tensor) -> str:
    batch, _, height, width = images.shape
    return f"{height} x {width} pixels, {batch} image{'s' if batch > 1 else ''}"


def differences(
    expected: Detections, actual: Detections, test_cfg: Any = None
) -> tuple[float, ...]:
    """The largest differences of boxes (pixels), scores and mask IoUs, in both directions.

    With a `test_cfg`, a detection without a match is excused if rounding decides about it there.
    """
    errors: list[tuple[float, ...]] = []
    for one, other in ((expected, actual), (actual, expected)):
        parts = differences_to(one, other)
        if test_cfg is not None:
            excused = (parts[0] > BOX_TOLERANCE) & _are_ties(one, other, test_cfg)
            parts = tuple(part[~excused] for part in parts)
        errors.append(_largest(parts))
    return _largest(zip(*errors))


def differences_to(one: Detections, other: Detections) -> tuple[Tensor, ...]:
    """Differences of boxes, scores and masks, each [N], to the nearest of the same label.

    Of masks it is 1 - IoU, without one pixel: rounding decides about pixels at the threshold.
    """
    boxes = (one.boxes[:, None] - other.boxes).abs().amax(dim=2)  # [N, M]
    scores = (one.scores[:, None] - other.scores).abs()
    others, inf = one.labels[:, None] != other.labels, float("inf")
    boxes, scores = (
        F.pad(part.masked_fill(others, inf), (0, 1), value=inf) for part in (boxes, scores)
    )
    match = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE).argmin(1, keepdim=True)
    masks = torch.zeros_like(one.scores)
    if one.masks is not None and other.masks is not None:
        pairs = one.masks, F.pad(other.masks, (0, 0, 0, 0, 0, 1))[match[:, 0]]
        differing, union = (op(*pairs).sum(dim=(1, 2)) for op in (torch.ne, torch.logical_or))
        masks = (differing - 1).clamp(min=0) / union.clamp(min=1)
    return boxes.gather(1, match)[:, 0], scores.gather(1, match)[:, 0], masks


def disagreement(expected: Detections, actual: Detections) -> float:
    """0 to 1: what lacks to IoU 1 and to equal scores with the best match, weighted by score."""
    quality = box_iou(expected.boxes, actual.boxes)  # [N, M]
    quality = quality * (1 - (expected.scores[:, None] - actual.scores).abs())
    quality[expected.labels[:, None] != actual.labels] = 0
    lacking = (1 - F.pad(quality, (0, 1)).amax(dim=1)) * expected.scores
    return float(lacking.sum() / expected.scores.sum().clamp(min=1e-6))


def _largest(parts: Iterable[Any]) -> tuple[float, ...]:
    return tuple(max([0.0, *map(float, part)]) for part in parts)


def _are_ties(one: Detections, other: Detections, test_cfg: Any) -> Tensor:
    """Where rounding decides, [N]: at the score threshold, at `max_per_img`, or in NMS.

    In NMS it decides between overlapping boxes of equal scores, and at `iou_threshold`.
    """
    cuts = [one.scores.new_tensor(test_cfg.get("score_thr", 0))]
    cuts += [other.scores.min()] if len(other.scores) >= test_cfg.get("max_per_img", 0) else []
    is_cut = [(one.scores - cut).abs() <= SCORE_TOLERANCE for cut in cuts]
    nms = test_cfg.get("nms") or {"iou_threshold": float("inf")}
    overlap = box_iou(one.boxes, other.boxes) - nms["iou_threshold"]  # [N, M]
    if not nms.get("class_agnostic", False):
        overlap[one.labels[:, None] != other.labels] = -1
    equal = (one.scores[:, None] - other.scores).abs() <= SCORE_TOLERANCE
    rivals = (overlap.abs() <= IOU_TOLERANCE) | (overlap > 0) & equal
    return torch.stack([*is_cut, rivals.any(dim=1)]).any(dim=0)
