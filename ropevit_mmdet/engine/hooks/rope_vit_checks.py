"""RoPEViTChecks: checks at the start of a run, and boxes decoded in float32 during it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.hub import resolve_weights

# Heads whose num_classes is the dataset's; that of an RPN is 1.
_HEAD = re.compile(r"(^|\.)(bbox|mask)_head(\.\d+)?$")


@HOOKS.register_module()
class RoPEViTChecks(Hook):
    """Stops a run whose config contradicts itself, its dataset or its checkpoint.

    Compares the heads' strides with the neck's, their number of classes with the dataset's, and the
    preprocessor's normalization with the checkpoint's. Warns if the batch size differs from the one
    of the learning rate. While the run trains, validates or tests, `float32_decoding` is active.
    """

    def __init__(self) -> None:
        self._handles: list[list] = []  # of loops that run; a validation runs within training

    def before_run(self, runner) -> None:
        model = _bare(runner.model)
        check_strides(model)
        loads = getattr(runner, "_load_from", None) or getattr(runner, "_resume", False)
        if not loads:  # else nothing reads the backbone's own checkpoint
            check_normalization(model)

    def before_train(self, runner) -> None:
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                check_num_classes(_bare(runner.model), loop.dataloader.dataset)
        scaling = runner.cfg.get("auto_scale_lr", {})
        passes = runner.cfg.get("optim_wrapper", {}).get("accumulative_counts", 1)
        batch_size = runner.train_dataloader.batch_size
        if warning := batch_warning(scaling, runner.world_size, batch_size, passes):
            runner.logger.warning(warning)
        self._decode_in_float32(runner)

    def before_val(self, runner) -> None:
        self._decode_in_float32(runner)

    def before_test(self, runner) -> None:
        check_num_classes(_bare(runner.model), runner.test_loop.dataloader.dataset)
        self._decode_in_float32(runner)

    def _decode_in_float32(self, runner) -> None:
        self._handles.append(float32_decoding(runner.model))

    def _remove_hooks(self, runner) -> None:
        for handle in self._handles.pop():
            handle.remove()

    after_train = after_val = after_test = _remove_hooks


def batch_warning(
    auto_scale_lr: Mapping, processes: int, per_process: int | None, passes: int = 1
) -> str | None:
    """Returns a warning if the effective batch size is not the config's, else None.

    `base_batch_size` and `per_process` count the images of one forward pass; `passes` is
    `accumulative_counts`, of the run and in `auto_scale_lr`.
    """
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


def check_num_classes(model: nn.Module, dataset: Any) -> None:
    """Compares the number of classes of every box and mask head with the dataset's."""
    metainfo = getattr(dataset, "metainfo", {})
    classes = metainfo.get("thing_classes", metainfo.get("classes"))  # the former if panoptic
    if classes is None:
        return
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        if _HEAD.search(name) and number not in (None, len(classes)):
            raise UserError(
                f"{name}.num_classes is {number}, but the dataset has {len(classes)} classes: set "
                f"num_classes={len(classes)}, or metainfo = dict(classes=(...)) of the dataset"
            )


def check_strides(model: nn.Module) -> None:
    """Compares the strides of anchors, points and RoI extractors, in pixels, with the neck's."""
    strides = getattr(getattr(model, "neck", None), "strides", None)
    if strides is None:
        return
    for key, actual, has_ranges in _strides_of_heads(model):
        expected = tuple(strides)[: len(actual)] if "featmap_strides" in key else tuple(strides)
        if actual != expected:
            ranges = ", and adapt its regress_ranges, also in pixels" if has_ranges else ""
            raise UserError(
                f"{key} is {list(actual)}, but the neck's strides are {list(strides)} pixels; "
                f"set {key}={list(expected)}{ranges}"
            )


def check_normalization(model: nn.Module) -> None:
    """Compares the preprocessor's mean, std and channel order with the backbone's checkpoint."""
    backbone = getattr(model, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)  # in a FrozenBackbone
    init_cfg = getattr(backbone, "init_cfg", None)
    if not isinstance(backbone, RoPEViT) or not init_cfg or init_cfg.get("type") != "Pretrained":
        return
    stats = read_checkpoint(resolve_weights(init_cfg["checkpoint"])).rgb_stats
    preprocessor: Any = model.data_preprocessor
    if stats is None or not hasattr(preprocessor, "mean"):
        return
    expected = {key: [round(255 * v, 4) for v in stats[key]] for key in ("mean", "std")}
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
