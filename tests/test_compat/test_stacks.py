"""One training step on OpenMMLab's packages and on the fork's: the same losses, from mmdet 3.3.0.

The tolerance is for losses that mmdet sums in float32, in another order on other CPUs; on one
machine the two stacks are equal to the bit.
"""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ropevit_mmdet.compat import packaged_config

SHAPE = (112, 168)
# `gradient` is the norm of the gradients of all parameters, after the model's own initialization.
STEPS = {
    "shapes_maskrcnn": {
        "loss_rpn_cls": 0.6916006803512573,
        "loss_rpn_bbox": 0.011017742750780778,
        "loss_cls": 1.8111622079873235,
        "acc": 8.333333015441895,
        "loss_bbox": 0.05935237373957977,
        "loss_mask": 2.2630770206451416,
        "gradient": 17.99549672261113,
    },
    "shapes_retinanet": {
        "loss_cls": 1.1418649938531173,
        "loss_bbox": 0.6792370926641087,
        "gradient": 24.104141789060286,
    },
}


def sample(label):
    """Two rectangles; the labels and a height depend on `label`."""
    boxes = torch.tensor([[10.0, 12, 70, 60], [80, 30, 150, 100 + label]])
    masks = np.zeros((2, *SHAPE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    shapes = dict.fromkeys(("img_shape", "pad_shape", "batch_input_shape"), SHAPE)
    data_sample = DetDataSample(metainfo=shapes)
    data_sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([label, 3]), masks=BitmapMasks(masks, *SHAPE)
    )
    return data_sample


@pytest.mark.parametrize("name", STEPS)
def test_losses_of_a_step_equal_those_of_mmdet(name):
    init_default_scope("mmdet")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(packaged_config(name)).model)
    model.init_weights()
    model.train()
    losses = model.loss(torch.rand(2, 3, *SHAPE) - 0.5, [sample(0), sample(1)])
    totals = {
        key: sum(value) if isinstance(value, list) else value for key, value in losses.items()
    }
    sum(value for key, value in totals.items() if "loss" in key).backward()
    grads = [param.grad.norm() for param in model.parameters() if param.grad is not None]
    step = {key: value.item() for key, value in totals.items()}
    step["gradient"] = torch.stack(grads).norm().item()
    assert step == pytest.approx(STEPS[name], rel=1e-6)
