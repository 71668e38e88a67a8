"""configs/custom_coco.py: a dataset needs only its four first lines."""

import json
import re

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from ropevit_mmdet.datasets import check_datasets
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_config_classes
from ropevit_mmdet.errors import UserError
from tests.test_configs import CONFIGS, load
from tests.tiny_coco import write_tiny


@pytest.fixture
def custom(tmp_path):
    """Writes the config for a tiny dataset; arguments replace lines."""
    write_tiny(tmp_path)
    data = tmp_path / "data"
    (data / "images").rename(data / "photos")
    (data / "annotations.json").rename(data / "instances_photos.json")

    def write(**lines):
        ours = dict(data_root=f"{data}/", train_ann="instances_photos.json")
        ours |= dict(val_ann="instances_photos.json", classes=("dark", "light"))
        text = (CONFIGS / "custom_coco.py").read_text()
        for name, value in (ours | lines).items():
            text, count = re.subn(rf"^{name} = .*", f"{name} = {value!r}", text, flags=re.M)
            assert count == 1
        text = text.replace('"./ropevit', f'"{CONFIGS}/ropevit')
        path = tmp_path / "mine.py"
        path.write_text(text)
        return load_config(path)

    return write


def test_everything_follows_from_the_four_lines(custom):
    config = custom()
    check_datasets(config)
    head = config.model.roi_head
    assert head.bbox_head.num_classes == head.mask_head.num_classes == 2
    for split in ("train", "val", "test"):
        dataset = config[f"{split}_dataloader"].dataset
        assert dataset.metainfo.classes == ("dark", "light")
        assert dataset.data_prefix.img == "photos/"
        assert dataset.ann_file == "instances_photos.json"
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file
    assert config.val_evaluator.ann_file.endswith("data/instances_photos.json")


def test_schedules_count_passes(custom):
    single, config = custom(), custom(passes=4)
    assert config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 1
    assert config.optim_wrapper.accumulative_counts == 4
    for counted in (
        lambda c: c.train_cfg.max_iters,
        lambda c: c.train_cfg.val_interval,
        lambda c: c.default_hooks.checkpoint.interval,
        lambda c: c.param_scheduler[0].end,
        lambda c: c.param_scheduler[1].begin,
        lambda c: c.param_scheduler[1].end,
    ):
        assert counted(config) == 4 * counted(single)


def test_boxes_without_masks(custom, tmp_path):
    path = tmp_path / "data" / "instances_photos.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    path.write_text(json.dumps(content))
    custom(_base_=f"{CONFIGS}/ropevit_retinanet.py")
    config = load(tmp_path / "mine.py")
    check_datasets(config)
    train = config.train_dataloader.dataset
    train.pipeline[2].scale = train.pipeline[3].crop_size = (112, 112)
    train = DATASETS.build(train)
    assert config.val_evaluator.metric == config.test_evaluator.metric == "bbox"
    model = MODELS.build(config.model)
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    losses = model.train_step(pseudo_collate([train[0], train[1]]), optim_wrapper)
    assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())
    assert model.bbox_head.num_classes == 2


def test_queries_for_masks(custom):
    config = custom(_base_=f"{CONFIGS}/ropevit_eomt.py")
    for head in (config.model.panoptic_head, config.model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (2, 0)
    assert config.default_hooks.mask_annealing.type == "MaskAnnealingHook"
    assert [one.type for one in config.param_scheduler] == ["LinearLR", "CosineAnnealingLR"]
    config.model.backbone.update(arch="rope_vit_t14", init_cfg=None)
    config.model.panoptic_head.in_channels = 192
    init_default_scope("mmdet")
    assert MODELS.build(config.model).panoptic_head.class_head.out_features == 3


@pytest.mark.parametrize(
    ("name", "clip"),
    [("dino", 0.1), ("deformable-detr", 0.1), ("ddq", 0.1), ("rtmdet", 1.0), ("rtmdet-ins", 1.0),
     ("mask2former", 0.01)],
)  # fmt: skip
def test_classes_reach_every_head(custom, tmp_path, name, clip):
    custom(_base_=f"{CONFIGS}/ropevit_{name}.py")
    config = load(tmp_path / "mine.py")
    assert config.optim_wrapper.clip_grad.max_norm == clip  # of the base, if it has one
    model = MODELS.build(config.model)
    check_config_classes(model, config, ("train", "val", "test"))
    if name == "mask2former":
        assert config.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 0.1]
        assert model.panoptic_head.cls_embed.out_features == 3
        assert model.panoptic_fusion_head.num_classes == 2
    else:
        assert model.bbox_head.num_classes == model.bbox_head.cls_out_channels == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [(dict(_base_=f"{CONFIGS}/ropevit_mask2former-panoptic.py"), "take the one without -panoptic"),
     (dict(passes=8), "passes must be 1, 2 or 4"), (dict(classes="dark"), r"\('dark',\)")],
)  # fmt: skip
def test_invalid_settings(custom, lines, message):
    with pytest.raises(ValueError, match=message):
        custom(**lines)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("dark", "bright"), "lack 'bright' of the config's classes"),
        (("cat",), "lack 'cat' of the config's classes and include 'dark', 'light', with objects"),
        (("light", "dark"), "have another order than the config's classes"),
    ],
)
def test_classes_that_do_not_match(custom, classes, message):
    with pytest.raises(UserError, match=message):
        check_datasets(custom(classes=classes))


def test_some_of_the_classes(custom, tmp_path, monkeypatch):
    """Objects of the others are neither trained nor evaluated, as in mmdet; a line says so."""
    config, lines = custom(classes=("light",)), []
    check_datasets(config)
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", lines.append)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    found = [len(dataset.get_data_info(index)["instances"]) for index in range(4)]
    assert found == [1, 0, 1, 0] and "include 'dark', with objects" in lines[0]
    path = tmp_path / "data" / "instances_photos.json"
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 1]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="0 usable objects: all are of other classes than the"):
        check_datasets(config)
