"""Every config builds, agrees with itself about strides, and takes a loss step and a test step."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ropevit_mmdet.hooks import check_strides

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.glob("*.py"))


def load(path: Path) -> Config:
    """The config with a small architecture, by name, and without its checkpoint."""
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    if isinstance(config.model.backbone.arch, str):
        small = {"backbone.arch": "rope_vit_t14", "backbone.init_cfg": None}
        small |= {"neck.in_channels": 192, "data_preprocessor.batch_augments": None}
        config.merge_from_dict({f"model.{key}": value for key, value in small.items()})
    return config


def pictures(num_classes: int) -> dict:
    """Two pictures of unequal size with two objects each, as a data loader gives them."""
    from mmdet.structures.mask import BitmapMasks

    inputs, samples = [], []
    for height, width in ((120, 150), (112, 100)):
        boxes = torch.tensor([[10.0, 20, 60, 70], [30, 10, 90, 100]])
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([0, num_classes - 1]),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        shape = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=dict(shape, img_id=0), gt_instances=instances)
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()
        )
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_builds_and_takes_a_loss_step_and_a_test_step(path):
    config = load(path)
    model = MODELS.build(config.model)
    model.init_weights()
    check_strides(model)
    head = config.model.get("roi_head", config.model).bbox_head
    data = model.data_preprocessor(pictures(head.num_classes), training=True)
    model.train()
    losses = model(**data, mode="loss")
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)
    assert total.isfinite()
    total.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "parameters without a gradient stop DDP"

    with torch.no_grad():
        data = model.eval().data_preprocessor(pictures(head.num_classes))
        results = model(**data, mode="predict")
    assert [r.pred_instances.bboxes.shape[-1] for r in results] == [4, 4]
    assert ("masks" in results[0].pred_instances) == ("roi_head" in config.model)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_only_things_that_are_registered(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type)
    assert config.randomness.seed is not None  # a resumed run needs it
    assert dict(type="RoPEViTChecks") in config.custom_hooks


def test_the_coco_recipe_is_the_windowed_one():
    backbone = Config.fromfile(CONFIGS / "ropevit_maskrcnn.py").model.backbone
    model = MODELS.build(dict(backbone, init_cfg=None, arch="rope_vit_t14"))
    assert model.window_size == model.pretrain_grid[0] == 16
    assert model.global_attn_indices == (2, 5, 8, 11)
    assert Config.fromfile(CONFIGS / "ropevit_maskrcnn_global.py").model.backbone.init_cfg
