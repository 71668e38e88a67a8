"""RoPEViTChecks: checks at the start of a run, and boxes decoded in float32 during it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.datasets import dataset_metainfo, innermost_datasets
from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.engine.hooks._checkpoint_files import latest_checkpoint
from ropevit_mmdet.engine.hooks._query_checks import check_queries
from ropevit_mmdet.engine.hooks._resumed_settings import resume_warning
from ropevit_mmdet.engine.recipe_checks import recipe_warnings
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.fast_coco_metric import zero_figures
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.necks.simple_feature_pyramid import SimpleFeaturePyramid
from ropevit_mmdet.weights.checkpoint import read_pretrained
from ropevit_mmdet.weights.detector_checkpoint import (
    check_start,
    has_backbone,
    inner_backbone,
    skip_init,
)
from ropevit_mmdet.weights.inspection import pixel_stats

# Heads whose num_classes is the dataset's; that of an RPN is 1.
_HEAD = re.compile(r"(^|\.)(bbox|mask)_head(\.\d+)?$")
_MASK_HEAD = re.compile(r"^((roi|bbox)_head\.mask_head(\.\d+)?|panoptic_head)$")


@HOOKS.register_module()
class RoPEViTChecks(Hook):
    """Stops a run whose config contradicts itself, its dataset or its checkpoint.

    Compares the neck's feature maps with the backbone's, the heads' strides with the neck's, their
    number of classes and their masks with the dataset's, and the preprocessor's normalization with
    the checkpoint's. Warns of recipes with which a RoPE ViT trains badly (`recipe_warnings`), if
    the batch size differs from the one of the learning rate, or the settings of a resumed run from
    those of its checkpoint. While the run trains, validates or tests, `float32_decoding` is active.
    """

    def __init__(self) -> None:
        self._handles: list[list] = []  # of loops that run; a validation runs within training

    def before_run(self, runner) -> None:
        model = _bare(runner.model)
        check_feature_maps(model)
        check_strides(model)
        if getattr(runner, "start_is_checked", False):  # by the command
            return
        start, resume = getattr(runner, "_load_from", None), getattr(runner, "_resume", False)
        if resume and start is None:
            start = latest_checkpoint(runner.work_dir)
        if start is None:
            check_normalization(model)
        elif not runner._has_loaded:  # a FlexibleRunner has
            checkpoint = check_start(model, dict(load_from=start, resume=resume))
            if has_backbone(model, checkpoint):
                skip_init(model)

    def after_load_checkpoint(self, runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        if warning := resume_warning(checkpoint, runner.cfg, runner.world_size):
            runner.logger.warning(warning)

    def before_train(self, runner) -> None:
        self._decode_in_float32(runner)
        for line in recipe_warnings(runner.cfg) if "model" in runner.cfg else ():
            runner.logger.warning(line)
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            _check_dataset(runner.model, loop.dataloader.dataset, loop is runner.train_loop)
        check_masks(_bare(runner.model), runner.train_loop.dataloader.dataset)
        scaling = runner.cfg.get("auto_scale_lr") or {}
        passes = runner.cfg.get("optim_wrapper", {}).get("accumulative_counts", 1)
        # batch_size of a data loader is None where the config has a batch_sampler
        batch_size = getattr(runner.train_dataloader.batch_sampler, "batch_size", None)
        if warning := batch_warning(scaling, runner.world_size, batch_size, passes):
            runner.logger.warning(warning)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Without detections CocoMetric returns no figures, and schedulers that need one fail."""
        if metrics is not None:
            for name, value in zero_figures(runner.val_loop.evaluator.metrics).items():
                if not any(known.endswith(name) for known in metrics):
                    metrics[name] = value

    def before_test(self, runner) -> None:
        _check_dataset(runner.model, runner.test_loop.dataloader.dataset)
        self._decode_in_float32(runner)

    def _decode_in_float32(self, runner) -> None:
        self._handles.append(float32_decoding(runner.model))

    def _remove_hooks(self, runner) -> None:
        for handle in self._handles.pop():
            handle.remove()

    before_val = _decode_in_float32
    after_train = after_val = after_test = _remove_hooks


def batch_warning(
    auto_scale_lr: Mapping, processes: int, per_process: int | None, passes: int = 1
) -> str | None:
    """A warning if the effective batch size is not the config's; `passes` are accumulated."""
    base, base_passes = auto_scale_lr.get("base_batch_size"), auto_scale_lr.get("passes", passes)
    batch = processes * (per_process or 0)
    if base is None or not batch or (batch, passes) == (base, base_passes):
        return None
    advice = f"multiply all iterations by {base / batch:.3g}"
    if not auto_scale_lr.get("enable"):
        factor = batch * passes / (base * base_passes)
        advice += f" and the learning rate by {factor:.3g}"
        advice += " (--auto-scale-lr does the latter)" * (passes == base_passes)
    return (
        f"the effective batch size is {batch * passes} ({processes} processes x {per_process} "
        f"images x {passes} passes), not the config's {base} x {base_passes}: to train as the "
        f"config does, {advice}"
    )


def check_config_classes(model: nn.Module, config: Config, splits: Sequence[str]) -> None:
    """Applies `check_num_classes` to the datasets of a config, before any of them is built."""
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        for dataset in innermost_datasets(loader["dataset"]) if loader else ():
            check_num_classes(model, dataset_metainfo(dataset))


def check_num_classes(model: nn.Module, metainfo: Mapping[str, Any]) -> None:
    """Compares the number of classes of every box and mask head with the dataset's."""
    classes = metainfo.get("thing_classes", metainfo.get("classes"))  # the former if panoptic
    if classes is None or isinstance(classes, str):  # the name of a file
        return
    for name, module in model.named_modules():
        panoptic = bool(name) and hasattr(module, "num_things_classes")
        key = "num_things_classes" if panoptic else "num_classes"
        number = getattr(module, key, None)
        if (panoptic or _HEAD.search(name)) and number not in (None, len(classes)):
            raise UserError(
                f"{name}.{key} is {number}, but the dataset has {len(classes)} classes: set "
                f"{key}={len(classes)}, or metainfo = dict(classes=(...)) of the dataset"
            )


def check_masks(model: nn.Module, dataset: Any) -> None:
    """Checks that the pipeline loads masks if a mask head trains with them."""
    heads = [name for name, _ in model.named_modules() if _MASK_HEAD.search(name)]
    if heads and not _loads_masks(dataset):
        raise UserError(
            f"{heads[0]} trains with masks, but train_pipeline loads none: set "
            "dict(type='LoadAnnotations', with_bbox=True, with_mask=True) there"
        )


def check_feature_maps(model: nn.Module) -> None:
    """Compares the number of feature maps and their channels, of RoPEViT and neck."""
    for name, part in model.named_modules():
        neck = getattr(part, "neck", None)
        neck = neck[0] if isinstance(neck, nn.Sequential) else neck
        backbone = inner_backbone(part)
        if not isinstance(backbone, RoPEViT) or not isinstance(neck, SimpleFeaturePyramid):
            continue
        maps = [backbone.arch.hidden_dim] * len(backbone.out_indices)
        if list(neck.in_channels) != maps:
            several = f"{maps}, fuse='concat'" * (len(maps) > 1) or maps[0]
            raise UserError(
                f"{name}{'.' * bool(name)}neck.in_channels is {list(neck.in_channels)}, but the "
                f"backbone has out_indices={backbone.out_indices} with {maps[0]} channels: set "
                f"in_channels={several} of the neck, or other out_indices"
            )


def check_strides(model: nn.Module) -> None:
    """Compares the strides of anchors, points and RoI extractors, in pixels, with the neck's.

    And the neck's `in_stride` with the patches of a RoPEViT.
    """
    neck: Any = getattr(model, "neck", None)
    strides = getattr(neck, "strides", None)
    if strides is None:
        return
    backbone = inner_backbone(model)
    patch = backbone.patch_size if isinstance(backbone, RoPEViT) else None
    if patch and getattr(neck, "in_stride", patch) != patch:
        raise UserError(
            f"neck.in_stride is {neck.in_stride}, but the backbone's patches have {patch} pixels; "
            f"set neck.in_stride={patch}"
        )
    for key, actual, has_ranges in _strides_of_heads(model):
        expected = tuple(strides)[: len(actual)] if "featmap_strides" in key else tuple(strides)
        of_one_level = len(actual) == 1 and actual[0] in strides  # a mask branch's
        if actual != expected and not of_one_level:
            ranges = ", and adapt its regress_ranges, also in pixels" if has_ranges else ""
            raise UserError(
                f"{key} is {list(actual)}, but the neck's strides are {list(strides)} pixels; "
                f"set {key}={list(expected)}{ranges}"
            )


def check_normalization(model: nn.Module) -> None:
    """Compares the preprocessor's mean, std and channel order with the backbone's checkpoint."""
    backbone = inner_backbone(model)
    if not isinstance(backbone, RoPEViT) or not (checkpoint := read_pretrained(backbone.init_cfg)):
        return
    expected = pixel_stats(checkpoint)
    preprocessor: Any = model.data_preprocessor
    if not expected or not hasattr(preprocessor, "mean"):
        return
    actual = {
        key: [round(v, 4) for v in getattr(preprocessor, key).flatten().tolist()]
        for key in expected
    }
    rgb = bool(preprocessor._channel_conversion)
    if not (rgb and all(np.allclose(actual[key], expected[key], atol=0.01) for key in expected)):
        raise UserError(
            f"the data_preprocessor has mean={actual['mean']}, std={actual['std']}, "
            f"bgr_to_rgb={rgb}, other than the rgb_stats of the checkpoint; set there\n"
            f"    mean={expected['mean']},\n    std={expected['std']},\n    bgr_to_rgb=True,"
        )


def _check_dataset(model: Any, dataset: Any, training: bool = False) -> None:
    check_num_classes(_bare(model), getattr(dataset, "metainfo", {}))
    check_queries(_bare(model), dataset, training=training)


def _loads_masks(dataset: Any) -> bool:
    """Also if it has no pipeline to read."""
    pipelines = (getattr(one, "pipeline", None) for one in innermost_datasets(dataset))
    steps = (getattr(pipeline, "transforms", None) for pipeline in pipelines)
    return any(
        part is None or any(getattr(one, "with_mask", False) for one in part) for part in steps
    )


def _bare(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _strides_of_heads(model: nn.Module) -> Iterator[tuple[str, tuple[float, ...], bool]]:
    """Config keys of strides, the strides, and whether the module has ranges in pixels too."""
    from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
    from mmdet.models.dense_heads.anchor_head import AnchorHead

    for name, module in model.named_modules():
        generator = getattr(module, "prior_generator", None)
        if generator is not None and hasattr(generator, "strides"):
            key = f"{'anchor' if isinstance(module, AnchorHead) else 'prior'}_generator.strides"
            key = "strides" if isinstance(module, AnchorFreeHead) else key
            strides = tuple(s[0] if isinstance(s, (tuple, list)) else s for s in generator.strides)
            yield f"{name}.{key}", strides, hasattr(module, "regress_ranges")
        if hasattr(module, "featmap_strides"):
            yield f"{name}.featmap_strides", tuple(module.featmap_strides), False
