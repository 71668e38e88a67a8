"""Overlays of objects over images: masks, boxes and names."""

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.font_manager import findfont
from mmdet.models.utils import mask2ndarray
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from PIL import Image, ImageColor, ImageOps
from pycocotools import mask as rle
from torchvision.utils import draw_bounding_boxes, make_grid

from ropevit_mmdet.visualization._figure_file import COLORS

_LONG_SIDE = 960  # pixels


def draw_sample(
    image: np.ndarray, sample: DetDataSample, names: Sequence[str], *, long_side: int = _LONG_SIDE
) -> np.ndarray:
    """Renders the objects of a data sample over its image.

    Args:
        image: RGB pixels [H, W, 3], uint8.
        sample: with `gt_instances`, `pred_instances` or both, boxes and masks in pixels; masks may
            be a list of run lengths too. Its `ignored_instances` are labelled "ignored".
        names: the class name of each label.
        long_side: images of up to half of it are enlarged, in pixels.

    Returns:
        RGB pixels, enlarged by an integer factor if the image is small; with both, the ground
        truth at the left and the prediction at the right.
    """
    factor = max(1, long_side // max(image.shape))
    panels = []
    for part in ("gt_instances", "pred_instances"):
        if part in sample:
            panel = mmcv.imrescale(image, factor) if factor > 1 else image.copy()
            panel = _draw(panel, sample.get(part), factor, names)
            if part == "gt_instances" and "labels" in sample.get("ignored_instances", ()):
                ignored = sample.ignored_instances.new()
                ignored.labels = torch.full_like(ignored.labels, len(names))
                panel = _draw(panel, ignored, factor, [*names, "ignored"])
            panels.append(panel)
    return np.concatenate(panels, axis=1)


def contact_sheet(images: Sequence[np.ndarray], *, cell: int = 480) -> np.ndarray:
    """Arranges images [H, W, 3] in four columns, each fitted into `cell` x `cell` pixels."""
    pads = (ImageOps.pad(Image.fromarray(one), (cell, cell), color="white") for one in images)
    cells = torch.from_numpy(np.stack([np.asarray(one) for one in pads])).permute(0, 3, 1, 2)
    return make_grid(cells, nrow=4, padding=cell // 60, pad_value=255).permute(1, 2, 0).numpy()


def _draw(
    image: np.ndarray, instances: InstanceData, factor: int, names: Sequence[str]
) -> np.ndarray:
    """Renders objects over an image, which is enlarged by a factor; masks in place."""
    if not len(instances):
        return image
    colors = [ImageColor.getrgb(COLORS[i % len(COLORS)]) for i in range(len(names))]
    boxes = get_box_tensor(instances.bboxes).float().clone()
    labels = instances.labels.tolist()
    for index, label in enumerate(labels if "masks" in instances else ()):
        bounds = _blend(image, _mask(instances.masks, index), factor, colors[label])
        if not boxes[index].any():  # some detectors predict only masks
            boxes[index] = torch.tensor(bounds)
    height, width = image.shape[:2]
    boxes = (boxes * factor).clamp(torch.zeros(4), torch.tensor([width, height] * 2) - 1)
    texts = [names[label] for label in labels]
    if "scores" in instances:
        texts = [f"{one} {score:.1%}" for one, score in zip(texts, instances.scores.tolist())]
    long_side = max(height, width)
    drawn = draw_bounding_boxes(
        torch.from_numpy(image).permute(2, 0, 1),
        boxes,
        texts,
        [colors[label] for label in labels],
        width=max(2, long_side // 480),
        font=findfont("DejaVu Sans"),
        font_size=max(12, long_side // 70),
        label_colors="white",
        label_background_colors="black",
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).contiguous().numpy()


def _mask(masks: Any, index: int) -> np.ndarray:
    """One of many masks, without a copy of the others."""
    one = rle.decode(masks[index]) if isinstance(masks, list) else masks[index : index + 1]
    return one.astype(bool) if isinstance(masks, list) else mask2ndarray(one)[0].astype(bool)


def _blend(
    image: np.ndarray, mask: np.ndarray, factor: int, color: Sequence[int]
) -> tuple[int, int, int, int]:
    """Renders a mask [H, W] over an image enlarged by a factor, in place; returns its bounds."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = mask[top:bottom, left:right].repeat(factor, axis=0).repeat(factor, axis=1)
    covered = image[top * factor : bottom * factor, left * factor : right * factor]
    covered[part] = covered[part] // 2 + np.array(color, np.uint8) // 2
    modes = cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    outlines = cv2.findContours(part.astype(np.uint8), *modes)[0]
    offset = (int(left * factor), int(top * factor))
    cv2.drawContours(image, outlines, -1, (255, 255, 255), 1, offset=offset)
    return left, top, right, bottom
