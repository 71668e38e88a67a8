"""Overlays of objects over images, drawn by mmdet's visualizer."""

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmdet.models.utils import mask2ndarray
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from PIL import Image, ImageColor, ImageOps
from torchvision.utils import make_grid

from ropevit_mmdet.visualization._figure_file import COLORS, plain

_LONG_SIDE = 960  # pixels; images of up to half of it are enlarged
_ALPHA = 0.5  # of boxes and masks


def draw_sample(image: np.ndarray, sample: DetDataSample, names: Sequence[str]) -> np.ndarray:
    """Renders the objects of a data sample over its image.

    Args:
        image: RGB pixels [H, W, 3], uint8.
        sample: with `gt_instances`, `pred_instances` or both, boxes and masks in pixels. Its
            `ignored_instances` are labelled "ignored".
        names: the class name of each label.

    Returns:
        RGB pixels, enlarged by an integer factor if the image is small; with both, the ground
        truth at the left and the prediction at the right.
    """
    factor = max(1, _LONG_SIDE // max(image.shape))
    drawn = DetDataSample()
    if "gt_instances" in sample:
        drawn.gt_instances = _enlarged(sample.gt_instances, factor, image.shape)
    if "labels" in sample.get("ignored_instances", ()):
        ignored = _enlarged(sample.ignored_instances, factor, image.shape)
        ignored.labels = ignored.labels * 0 + len(names)
        drawn.gt_instances = InstanceData.cat([drawn.gt_instances, ignored])
    if "pred_instances" in sample:
        drawn.pred_instances = _enlarged(sample.pred_instances, factor, image.shape)
    colors = [ImageColor.getrgb(COLORS[i % len(COLORS)]) for i in range(len(names) + 1)]
    visualizer = DetLocalVisualizer(
        "overlay", bbox_color=colors, text_color="white", mask_color=colors, alpha=_ALPHA
    )
    visualizer.dataset_meta = {"classes": [plain(name) for name in (*names, "ignored")]}
    state = np.random.get_state()
    np.random.seed(0)  # the visualizer varies the colors of masks at random
    visualizer.add_datasample(
        "overlay",
        mmcv.imrescale(image, factor),
        drawn,
        draw_gt="gt_instances" in drawn,
        draw_pred="pred_instances" in drawn,
        pred_score_thr=-1,  # callers choose the objects
    )
    np.random.set_state(state)
    return visualizer.get_image()


def contact_sheet(images: Sequence[np.ndarray], *, cell: int = 480) -> np.ndarray:
    """Arranges images [H, W, 3] in four columns, each fitted into `cell` x `cell` pixels."""
    pads = (ImageOps.pad(Image.fromarray(one), (cell, cell), color="white") for one in images)
    cells = torch.from_numpy(np.stack([np.asarray(one) for one in pads])).permute(0, 3, 1, 2)
    return make_grid(cells, nrow=4, padding=cell // 60, pad_value=255).permute(1, 2, 0).numpy()


def _enlarged(instances: InstanceData, factor: int, shape: tuple[int, ...]) -> InstanceData:
    """Boxes and masks for an image of a shape after enlargement; clips boxes and pads masks."""
    result = instances.new()
    if "bboxes" in instances:
        boxes = HorizontalBoxes(get_box_tensor(instances.bboxes) * factor)
        boxes.clip_((shape[0] * factor - 1, shape[1] * factor - 1))
        result.bboxes = boxes.tensor
    if "masks" in instances:
        masks = mask2ndarray(instances.masks).astype(bool)
        bottom, right = np.subtract(shape[:2], masks.shape[1:])
        masks = np.pad(masks, ((0, 0), (0, bottom), (0, right)))
        result.masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    return result
