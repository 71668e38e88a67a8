"""The recipe of EoMT, and its panoptic run; configs of heads with queries or masks resume."""

import json

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoPanopticDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from PIL import Image

from ropevit_mmdet.engine.hooks.mask_annealing_hook import probabilities
from tests.test_configs import CONFIGS, load
from tests.tiny_coco import write_tiny

STEPS_PER_EPOCH = 7391  # of 16 images, as the published annealing counts


def test_layer_decay_ends_at_the_heads():
    config = load(CONFIGS / "ropevit_eomt.py")
    model = MODELS.build(config.model)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rates = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        lr, decay = rates[parameter]
        if name.startswith(("panoptic_head", "backbone.norm")):
            assert lr == pytest.approx(1e-4), name
        elif name.startswith("backbone.blocks"):
            assert lr == pytest.approx(1e-4 * 0.8 ** (12 - int(name.split(".")[2]))), name
        else:
            assert lr == pytest.approx(1e-4 * 0.8**13), name
        if name == "panoptic_head.q.weight":
            assert decay == 0.05


def test_published_recipe():
    """arXiv 2503.19108 and https://github.com/tue-mps/eomt."""
    config = Config.fromfile(CONFIGS / "ropevit_eomt.py")
    assert config.train_cfg.max_iters == 12 * STEPS_PER_EPOCH
    assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 16
    backbone, side = config.model.backbone, config.model.data_preprocessor.pad_size_divisor
    assert side == 640 == backbone.rope_interpolation and backbone.patch_size == 16
    train, test = (config[f"{split}_dataloader"].dataset.pipeline for split in ("train", "test"))
    assert [train[2].scale, train[3].crop_size, test[1].scale] == [(side, side)] * 3
    assert train[2].ratio_range == (0.1, 2.0) and train[1].with_mask
    (schedule,) = config.param_scheduler
    assert schedule.end == config.train_cfg.max_iters
    assert config.optim_wrapper.clip_grad == dict(max_norm=0.01)
    head, costs = config.model.panoptic_head, config.model.train_cfg.assigner.match_costs
    weights = [2.0, 5.0, 5.0]
    assert [head[f"loss_{part}"].loss_weight for part in ("cls", "mask", "dice")] == weights
    assert [cost.weight for cost in costs] == weights
    panoptic = Config.fromfile(CONFIGS / "ropevit_eomt-panoptic.py")
    head = panoptic.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (80, 53)
    assert panoptic.model.panoptic_fusion_head.num_stuff_classes == 53
    assert panoptic.train_dataloader.dataset.data_prefix.img == "train2017/"


def runner(name, directory, work_dir, checkpoint=None):
    """Of a config, small, for seven iterations on four images; resumes from a checkpoint."""
    config = load(CONFIGS / f"{name}.py")
    tiny = Config.fromfile(directory / "tiny.py")
    dataset = dict(tiny.dataset, pipeline=config.train_pipeline)
    config.train_dataloader = dict(tiny.train_dataloader, dataset=dataset)
    config.train_dataloader.sampler.shuffle = True
    for key in ("val_cfg", "val_dataloader", "val_evaluator", "test_cfg", "test_dataloader"):
        config[key] = None
    config.test_evaluator = None
    for part in ("panoptic_head", "panoptic_fusion_head"):
        if part in config.model:
            config.model[part].num_things_classes = 2
    if "bbox_head" in config.model:
        config.model.bbox_head.num_classes = 2
    elif "class_weight" in config.model.panoptic_head.loss_cls:
        config.model.panoptic_head.loss_cls.class_weight = [1.0, 1.0, 0.1]
    config.train_cfg.max_iters = 7
    config.default_hooks.checkpoint.update(interval=3, max_keep_ckpts=3)
    config.update(load_from=checkpoint and str(checkpoint), resume=bool(checkpoint))
    config.update(work_dir=str(work_dir), experiment_name=work_dir.name)
    return Runner.from_cfg(config)


@pytest.mark.parametrize("head", ["eomt", "dino", "rtmdet-ins", "mask2former"])
def test_resumes_to_the_bit(head, tmp_path, mmengine_instances):
    name = f"shapes_{head}"
    write_tiny(tmp_path)
    straight = runner(name, tmp_path, tmp_path / "straight")
    straight.train()
    resumed = runner(name, tmp_path, tmp_path / "resumed", tmp_path / "straight" / "iter_3.pth")
    resumed.train()
    assert resumed.iter == straight.iter == 7
    assert 0 < probabilities(5 / 7, 2)[1] < 1  # after the checkpoint: queries are sampled
    expected = straight.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_panoptic_trains_and_evaluates(tmp_path, mmengine_instances):
    """Of two images with a person on a wall; a perfect prediction has a PQ of 100."""
    utils = pytest.importorskip("panopticapi.utils")
    segments = np.full((48, 64), 20)
    segments[10:40, 20:50] = 10
    infos = [
        dict(id=10, category_id=1, iscrowd=0, area=900, bbox=[20, 10, 30, 30]),
        dict(id=20, category_id=132, iscrowd=0, area=2172, bbox=[0, 0, 64, 48]),
    ]
    (tmp_path / "maps").mkdir()
    for i in (1, 2):
        Image.fromarray(utils.id2rgb(segments)).save(tmp_path / f"maps/{i}.png")
        Image.fromarray(utils.id2rgb(segments)).save(tmp_path / f"{i}.jpg")
    content = dict(
        images=[dict(id=i, file_name=f"{i}.jpg", height=48, width=64) for i in (1, 2)],
        annotations=[dict(image_id=i, file_name=f"{i}.png", segments_info=infos) for i in (1, 2)],
        categories=[
            dict(id=i, name=name, isthing=int(i <= 80))
            for i, name in enumerate(CocoPanopticDataset.METAINFO["classes"], start=1)
        ],
    )
    (tmp_path / "all.json").write_text(json.dumps(content))
    config = load(CONFIGS / "ropevit_eomt-panoptic.py")
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.pipeline = _small(loader.dataset.pipeline)
        loader.dataset.update(data_root=str(tmp_path), ann_file="all.json")
        loader.dataset.update(data_prefix=dict(img="", seg="maps/"))
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.update(ann_file=str(tmp_path / "all.json"), seg_prefix=str(tmp_path / "maps"))
        evaluator.update(nproc=1)

    def perfect(x, samples):
        masks = torch.tensor(np.stack([segments == info["id"] for info in infos])) * 20.0 - 10.0
        classes = torch.full((len(samples), 2, 134), -20.0)
        classes[:, 0, 0] = classes[:, 1, 131] = 20.0
        return classes, masks.expand(len(samples), -1, -1, -1)

    config.train_cfg.update(max_iters=1, val_interval=1)
    config.update(work_dir=str(tmp_path / "run"))
    runner = Runner.from_cfg(config)
    runner.model.panoptic_head.predict = perfect
    runner.train()
    assert runner.message_hub.get_scalar("val/coco_panoptic/PQ").current() == 100


def _small(pipeline):
    sizes = ("scale", "crop_size")
    return [{key: (64, 64) if key in sizes else step[key] for key in step} for step in pipeline]
