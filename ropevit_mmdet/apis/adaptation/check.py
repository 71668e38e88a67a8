"""A training step and a prediction on synthetic data, of any detector config."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ropevit_mmdet.apis.adaptation.edits import walk
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_strides
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

_SIDE = 224  # pixels, of a padded batch
_SIZES = ((200, 224), (212, 198))  # pixels (height, width)
_CORNERS = torch.tensor([[0.1, 0.15, 0.6, 0.7], [0.45, 0.4, 0.95, 0.9]])  # boxes, of an image
_PROPOSALS = {"max_per_img": 50, "nms_pre": 200}  # fewer than of a large image
_BRANCHES = ("sup", "unsup_teacher", "unsup_student")  # of semi-supervised training


def check_training(
    config: Config, *, predict: bool = False, sizes: tuple[tuple[int, int], ...] | None = None
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
        if not kept and type_name(settings.get("init_cfg")) == "Pretrained":
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
    config: Config, sizes: Sequence[tuple[int, int]], corners: Tensor = _CORNERS
) -> dict[str, Any]:
    """Images with objects, as the training pipeline of a config loads them.

    Args:
        config: says whether masks, segmentations and proposals are loaded.
        sizes: pixels (height, width) of each image.
        corners: [N, 4] boxes x1, y1, x2, y2 of each image, as fractions of its sides.
    """
    inputs, samples = [], []
    loads = _loaded(config)
    for index, (height, width) in enumerate(sizes):
        shape = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        meta = dict(shape, img_id=index, flip=False, border=(0, height, 0, width))
        meta["homography_matrix"] = torch.eye(3).numpy()
        sample = DetDataSample(metainfo=meta)
        boxes = corners * torch.tensor([width, height] * 2)
        none, labels = torch.zeros(0, 4), torch.zeros(len(boxes), dtype=torch.long)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(bboxes=none, labels=labels[:0])
        if loads["masks"]:
            masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(masks.numpy(), height, width)
        if loads["segmentation"]:
            classes = torch.zeros(1, height, width, dtype=torch.uint8)
            sample.gt_sem_seg = PixelData(sem_seg=classes)
        if loads["proposals"]:
            proposals = torch.cat([boxes, boxes + 9])
            sample.proposals = InstanceData(bboxes=proposals, scores=torch.ones(len(proposals)))
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def _loaded(config: Config) -> dict[str, bool]:
    """Which annotations the training pipeline loads."""
    steps = [step for _, step in walk(config.get("train_dataloader"))]
    panoptic = any("Panoptic" in type_name(step) for step in steps)
    return dict(
        masks=panoptic or any(step.get("with_mask") for step in steps),
        segmentation=panoptic or any(step.get("with_seg") for step in steps),
        proposals=any(type_name(step) == "LoadProposals" for step in steps),
    )


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
