"""Heads with queries: classes, detections and images that do not fit them stop a run early."""

from types import SimpleNamespace

import pytest
import torch
from mmcv.transforms import RandomResize
from mmdet.datasets.transforms import PackDetInputs, RandomFlip, Resize
from mmdet.registry import MODELS

from ropevit_mmdet.engine.hooks._query_checks import check_queries
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_masks
from ropevit_mmdet.errors import UserError
from tests.test_configs import CONFIGS, load


class Images(list):
    """Sizes (height, width) as a dataset."""

    def __init__(self, *sizes, steps=()):
        super().__init__(dict(height=height, width=width) for height, width in sizes)
        self.pipeline = SimpleNamespace(transforms=[*steps, PackDetInputs()])

    get_data_info = list.__getitem__


def small(name, **options):
    config = load(CONFIGS / f"shapes_{name}.py")
    config.merge_from_dict({f"model.{key}": value for key, value in options.items()})
    return MODELS.build(config.model)


@pytest.mark.parametrize(
    ("size", "steps", "cells"),
    [
        ((28, 28), [], 21),
        ((30, 20), [RandomFlip(0.5)], 42),
        ((280, 140), [Resize((56, 28), keep_ratio=True)], 42),
        ((28, 28), [Resize((28, 56))], 42),
    ],
)
def test_images_have_as_many_cells_as_a_two_stage_head_chooses(size, steps, cells):
    """The cells are those of the neck, of padded images, at strides 7, 14 and 28."""
    images = Images((560, 280), size, steps=steps)
    model = small("dino", num_queries=cells, **{"test_cfg.max_per_img": 10})
    check_queries(model, images, training=True)
    padded = (28, 28) if cells == 21 else (56, 28)
    levels = model.extract_feat(torch.zeros(1, 3, *padded))
    assert sum(level[0, 0].numel() for level in levels) == cells
    model.num_queries += 1
    with pytest.raises(UserError, match=rf"has {cells} cells .* DINO chooses {cells + 1}: "):
        check_queries(model, images, training=True)
    check_queries(model, Images(size, steps=[RandomResize((9, 9))]), training=True)  # unknown
    check_queries(model, SimpleNamespace(), training=True)  # no pipeline
    model.as_two_stage = False
    check_queries(model, images, training=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dino", {"test_cfg.max_per_img": 201}, "max_per_img is above the 200 scores of 40"),
        ("mask2former", {"test_cfg.max_per_image": 51}, "max_per_image is above the 50 scores"),
        (
            "mask2former", {"panoptic_head.num_things_classes": 3},
            r"class_weight has 6 values: set it to \[1\.0\] \* 3 \+ \[0\.1\]",
        ),
    ],
)  # fmt: skip
def test_detections_and_classes_match_the_queries(name, options, message):
    with pytest.raises(UserError, match=message):
        check_queries(small(name, **options), Images((224, 224)), training=False)
    check_queries(small(name), Images((224, 224)), training=False)


@pytest.mark.parametrize(
    ("name", "head"), [("rtmdet-ins", "bbox_head.mask_head"), ("mask2former", "panoptic_head")]
)
def test_heads_with_masks_need_them(name, head):
    with pytest.raises(
        UserError, match=f"^{head} trains with masks, but train_pipeline loads none"
    ):
        check_masks(small(name), Images())
