"""A training step and a prediction on synthetic data, of any detector config."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from ropevit_mmdet.compat.config import type_name, walk
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_strides
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid
from ropevit_mmdet.weights.checkpoint import pretrained_entries

_SIDE = 224  # pixels, of a padded batch
_SIZES = ((200, 224), (212, 198))  # pixels (height, width)
_PROPOSALS = {"max_per_img": 50, "nms_pre": 200}  # fewer than of a large image
_BRANCHES = ("sup", "unsup_teacher", "unsup_student")  # of semi-supervised training


def check_training(
    config: Config, *, predict: bool = False, sizes: Sequence[tuple[int, int]] | None = None
) -> None:
    """Builds a config's model, loads the weights of a RoPEViT, and takes a training step.

    Args:
        config: of any detector.
        predict: then predict, too.
        sizes: pixels (height, width) of the images; default: two that are padded to 224 x 224.

    Raises:
        UserError: losses that are not finite, or parameters of the backbone without a gradient.
    """
    config, sizes = offline(config, _SIDE, pretrained=True), sizes or _SIZES
    for _, settings in walk(config.model):
        if _PROPOSALS.keys() <= settings.keys():
            settings.update(_PROPOSALS)
    init_default_scope(config.get("default_scope") or "mmdet")
    model = MODELS.build(config.model)
    model.init_weights()
    student = getattr(model, "student", model)
    check_strides(student)
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0, max_iters=1))
    model.train()
    data = synthetic_batch(config, sizes)
    if student is not model:
        data = {key: {name: deepcopy(data[key]) for name in _BRANCHES} for key in data}
    losses = model._run_forward(model.data_preprocessor(data, True), mode="loss")
    total, logged = model.parse_losses(losses)
    total.backward()
    _check(student, logged, config.get("find_unused_parameters", False))
    optim_wrapper.step()
    if predict:
        model.eval()  # a statement: that of distillation returns None
        with torch.no_grad():
            model.test_step(synthetic_batch(config, sizes[:1]))


def offline(config: Config, side: int = 0, *, pretrained: bool = False) -> Config:
    """A copy that downloads nothing, caches nothing, and needs no GPU.

    With a `side` in pixels, the model pads or resizes a batch to a square of that side. Only with
    `pretrained` the init_cfg of a RoPEViT stays.
    """
    config = deepcopy(config)
    if "teacher_ckpt" in config.model:
        config.model.teacher_ckpt = None
    for path, settings in walk(config.model):
        if type_name(settings) in ("SyncBN", "MMSyncBN"):  # of a process group
            settings["type"] = "BN"
        kept = pretrained and type_name(settings) == "RoPEViT"
        if not kept and pretrained_entries(settings.get("init_cfg")):
            settings["init_cfg"] = None
        if side and "batch_augments" in path:
            settings.update(dict.fromkeys({"size", "scale"} & settings.keys(), (side, side)))
        if type_name(settings) == "FrozenBackbone":
            settings["cache_dir"] = None
    wrapper = config.setdefault("optim_wrapper", dict(optimizer=dict(type="SGD", lr=0.01)))
    if type_name(wrapper) == "AmpOptimWrapper":  # asserts a GPU
        wrapper.type = "OptimWrapper"
        for key in {"dtype", "loss_scale", "use_fsdp"} & wrapper.keys():
            del wrapper[key]
    return config


def synthetic_batch(
    config: Config, sizes: Sequence[tuple[int, int]], objects: int = 2
) -> dict[str, Any]:
    """Images with objects, with what the training pipeline of a config loads.

    Args:
        config: says whether masks, segmentations and proposals are loaded.
        sizes: pixels (height, width) of each image.
        objects: number per image.
    """
    steps = [step for _, step in walk(config.get("train_dataloader"))]
    panoptic = any("Panoptic" in type_name(step) for step in steps)
    data = demo_mm_inputs(
        len(sizes),
        [(3, *size) for size in sizes],
        num_items=[objects] * len(sizes),
        with_mask=panoptic or any(step.get("with_mask") for step in steps),
        with_semantic=panoptic or any(step.get("with_seg") for step in steps),
    )
    for sample in data["data_samples"]:  # of the only class that every dataset has
        sample.gt_instances.labels.zero_()
        sample.ignored_instances = sample.gt_instances[:0]
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        if "gt_sem_seg" in sample:
            sample.gt_sem_seg.sem_seg.zero_()
        if any(type_name(step) == "LoadProposals" for step in steps):
            boxes = sample.gt_instances.bboxes
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
    return data


def _check(detector: nn.Module, losses: dict[str, torch.Tensor], may_be_idle: bool) -> None:
    """Distributed training fails on parameters without a gradient, unless the config allows it."""
    broken = [name for name, value in losses.items() if not torch.as_tensor(value).isfinite().all()]
    ours: list[Any] = [m for m in detector.modules() if isinstance(m, SimpleFeaturePyramid)]
    ours = [detector.backbone, *([] if may_be_idle else ours)]
    parameters = [pair for module in ours for pair in module.named_parameters()]
    idle = [name for name, p in parameters if p.requires_grad and p.grad is None]
    if broken or idle:
        problem = f"losses {', '.join(broken)} are not finite" if broken else ""
        problem += f"{len(idle)} parameters get no gradient: {idle[0]}, ..." if idle else ""
        raise UserError(f"a step on synthetic data failed: {problem}")
