"""Whether an exported graph computes what the PyTorch model computes, on images of several sizes.

The reference is the model as it is used everywhere else: `extract_feat`, and mmdet's own
`predict` with its decoding and NMS.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.model.utils import stack_batch
from torch import Tensor, nn

from ropevit_mmdet.deploy.detector import Detections

MAP_TOLERANCE = 1e-4  # of the maps' largest value, at least of 1
BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 1e-4

# The graph that is checked: an image [1, 3, H, W] and a score threshold (None: the file's own) to
# the graph's outputs.
Run = Callable[[Tensor, float | None], Sequence[Tensor]]


def check_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Three sizes (height, width), pixels, no square: whole windows, ragged ones, ragged patches.

    Without windows the pretraining grid stands for one.
    """
    patch = model.backbone.patch_size
    window = model.backbone.window_size or max(model.backbone.pretrain_grid)
    whole = (2 * window * patch, window * patch)
    ragged = (-(-5 * window // 4) * patch, -(-7 * window // 4) * patch)
    uneven = (-(-2 * window // 3) * patch + 1, -(-4 * window // 3) * patch + patch // 2)
    return [whole, ragged, uneven]


def check_features(model: nn.Module, run: Run, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """One line per size; raises ValueError where a map differs by more than MAP_TOLERANCE."""
    for size in sizes:
        image = example_image(size)
        with torch.no_grad():
            expected = model.extract_feat(image)
        worst = 0.0
        for want, got in zip(expected, run(image, None), strict=True):
            if want.shape != got.shape:
                raise ValueError(
                    f"the check failed at {_named(size)}: a map of {tuple(got.shape)}, not "
                    f"{tuple(want.shape)}"
                )
            scale = max(1.0, want.abs().max().item())
            worst = max(worst, (want - got).abs().max().item() / scale)
        if not worst <= MAP_TOLERANCE:
            raise ValueError(
                f"the check failed at {_named(size)}: maps differ by {worst:.1e} of their largest "
                f"value, over {MAP_TOLERANCE:.0e}"
            )
        yield f"{_named(size)}: {len(expected)} maps, largest difference {worst:.1e}"


def check_detections(model: nn.Module, run: Run, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """One line per size; raises ValueError where boxes, scores or labels differ.

    Where PyTorch finds nothing in the image, which is noise, the threshold is set to 0 for the
    check, in both.
    """
    for size in sizes:
        image = example_image(size)
        threshold, expected = None, detections(model, image)
        if not len(expected.scores):
            threshold, expected = 0.0, detections(model, image, 0.0)
        got = Detections(*run(image, threshold))
        boxes, scores = differences(expected, got, model.bbox_head.test_cfg)
        if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
            raise ValueError(
                f"the check failed at {_named(size)}: of {len(expected.scores)} detections boxes "
                f"differ by {boxes:.1e} pixels, scores by {scores:.1e}"
            )
        note = "" if threshold is None else ", with the score threshold set to 0"
        yield (
            f"{_named(size)}: {len(expected.scores)} detections, largest difference {boxes:.1e} "
            f"pixels, {scores:.1e} in scores{note}"
        )


def detections(model: nn.Module, image: Tensor, score_thr: float | None = None) -> Detections:
    """What mmdet finds in a normalised image [1, 3, H, W], in its pixels."""
    preprocessor, head = model.data_preprocessor, model.bbox_head
    sample = DetDataSample(metainfo=dict(img_shape=tuple(image.shape[-2:]), scale_factor=(1, 1)))
    padded = stack_batch([image[0]], preprocessor.pad_size_divisor, preprocessor.pad_value)
    cfg = copy.deepcopy(head.test_cfg)
    if score_thr is not None:
        cfg.score_thr = score_thr
    with torch.no_grad():
        found = head.predict_by_feat(
            *head(model.extract_feat(padded)), batch_img_metas=[sample.metainfo], cfg=cfg
        )[0]
    return Detections(found.bboxes, found.scores, found.labels)


def differences(expected: Detections, got: Detections, test_cfg: dict) -> tuple[float, float]:
    """Largest difference of boxes (pixels) and of scores between matched detections.

    A detection's match is the nearest one of its label. One that has none within BOX_TOLERANCE
    counts by its distance, infinity if there is none. A few, at most one in twenty, do not count
    where rounding alone decides that they are missing: the score is at the threshold or at the cut
    after `max_per_img`, or it ties with the score of one that it overlaps.
    """
    boxes = scores = 0.0
    for one, other in ((expected, got), (got, expected)):
        rounded = []
        for box, score, label in zip(*one):
            same = other.labels == label
            apart = (other.boxes[same] - box).abs().amax(dim=1)
            nearest = apart.min().item() if len(apart) else float("inf")
            if nearest <= BOX_TOLERANCE:
                scores = max(scores, (other.scores[same][apart.argmin()] - score).abs().item())
            elif _decided_by_rounding(box, score, label, other, test_cfg):
                rounded.append(nearest)
                continue
            boxes = max(boxes, nearest)
        if len(rounded) > max(1, len(one.scores) // 20):
            boxes = max(boxes, *rounded)
    return boxes, scores


def example_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Smooth blobs and a little noise, [1, 3, height, width], as a normalised image is."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, *(-(-side // 24) + 1 for side in size), generator=generator)
    blobs = F.interpolate(coarse, size=size, mode="bilinear")
    return blobs + 0.1 * torch.randn(1, 3, *size, generator=generator)


def _decided_by_rounding(
    box: Tensor, score: Tensor, label: Tensor, other: Detections, test_cfg: dict
) -> bool:
    """Whether a detection is missing in `other` because two numbers are as good as equal."""
    cuts = [score.new_tensor(test_cfg.get("score_thr", 0))]
    if len(other.scores) >= test_cfg.max_per_img:
        cuts.append(other.scores.min())
    if any((score - cut).abs() <= SCORE_TOLERANCE for cut in cuts):
        return True
    rivals = torch.ones_like(other.labels, dtype=torch.bool)
    if not test_cfg.nms.get("class_agnostic", False):
        rivals = other.labels == label
    overlap = _iou(box, other.boxes[rivals]) - test_cfg.nms.iou_threshold
    tied = (other.scores[rivals] - score).abs() <= SCORE_TOLERANCE
    return bool(((overlap > -1e-3) & (tied | (overlap.abs() <= 1e-3))).any())


def _iou(box: Tensor, boxes: Tensor) -> Tensor:
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    area = (box[2:] - box[:2]).prod()
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + area - shared).clamp(min=1e-9)


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
