"""Checks at the start of a run: strides, colours and classes that contradict each other stop it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.backbone import RoPEViT
from ropevit_mmdet.checkpoint import read_checkpoint
from ropevit_mmdet.weights.lookup import resolve_weights

# Heads whose num_classes is the data set's: an RPN has 1, one of stuff has others.
_HEAD = re.compile(r"(^|\.)(bbox|mask)_head(\.\d+)?$")


@HOOKS.register_module()
class RoPEViTChecks(Hook):
    """Stops a run whose heads were given other strides than the pyramid has or another number of
    classes than the data set, or whose preprocessor normalises colours otherwise than the
    checkpoint was trained with. Warns of a batch that is not the one its learning rate is for.

    Raises (as the run starts):
        ValueError: both values, and the lines to paste.
    """

    def before_run(self, runner) -> None:
        model = _bare(runner.model)
        check_strides(model)
        check_colours(model)

    def before_train(self, runner) -> None:
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                check_num_classes(_bare(runner.model), loop.dataloader.dataset)
        warning = batch_warning(
            runner.cfg.get("auto_scale_lr") or {},
            runner.world_size,
            runner.train_dataloader.batch_size,
            (runner.cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1),
        )
        if warning:
            runner.logger.warning(warning)

    def before_test(self, runner) -> None:
        check_num_classes(_bare(runner.model), runner.test_loop.dataloader.dataset)


def batch_warning(
    auto_scale_lr: Mapping, processes: int, per_process: int | None, passes: int = 1
) -> str | None:
    """What to say if the batch is not the config's ``base_batch_size``; None if all is well.

    That is the batch of one pass, which mmengine scales by, and ``passes`` of them are a step.
    """
    base = auto_scale_lr.get("base_batch_size")
    if base is None or per_process is None or processes * per_process == base:
        return None
    batch = processes * per_process
    scaled = auto_scale_lr.get("enable")
    rate = "is scaled to it" if scaled else "is not (--auto-scale-lr does so)"
    if batch * passes == base and not scaled:
        rate = (
            f"fits, as {passes} passes are a step, but iterations count passes: give train_cfg, "
            f"param_scheduler and the checkpoint's interval {passes} times as many, and then "
            f"auto_scale_lr.base_batch_size={batch}"
        )
    return (
        f"batch size {batch} ({processes} x {per_process}), the config is made for {base}: "
        f"the learning rate {rate}, and the run sees "
        f"{batch / base:.3g} times the pictures that its schedule means"
    )


def check_num_classes(model: nn.Module, dataset: Any) -> None:
    """Compares the number of classes of every box and mask head with the data set's.

    Raises:
        ValueError: they differ; names the head, and both numbers.
    """
    metainfo = getattr(dataset, "metainfo", {})
    classes = metainfo.get("thing_classes", metainfo.get("classes"))  # the former of a panoptic set
    if classes is None:
        return
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None) if _HEAD.search(name) else None
        if number is not None and number != len(classes):
            raise ValueError(
                f"{name}.num_classes is {number}, but the data set has {len(classes)} classes "
                f"({', '.join(map(str, classes[:6]))}{', ...' * (len(classes) > 6)}); set "
                f"num_classes={len(classes)} there, or metainfo = dict(classes=(...)) in the data "
                "set"
            )


def check_strides(model: nn.Module) -> None:
    """Compares the strides of anchors, points and RoI extractors with those of the neck.

    Raises:
        ValueError: they differ; names the part and both lists, in pixels.
    """
    strides = getattr(getattr(model, "neck", None), "strides", None)
    if strides is None:
        return
    for part, given in _given_strides(model):
        expected = tuple(strides)[: len(given)] if "featmap_strides" in part else tuple(strides)
        if given != expected:
            raise ValueError(
                f"{part} is {list(given)}, but the neck gives {list(strides)} pixels; "
                f"set {part}={list(expected)}"
            )


def check_colours(model: nn.Module) -> None:
    """Compares the preprocessor's mean, std and channel order with the backbone's checkpoint.

    Raises:
        ValueError: they differ; gives the lines to paste.
    """
    backbone = getattr(model, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)  # in a FrozenBackbone
    init_cfg = getattr(backbone, "init_cfg", None)
    if not isinstance(backbone, RoPEViT) or not init_cfg:
        return
    stats = read_checkpoint(resolve_weights(init_cfg["checkpoint"])).rgb_stats
    preprocessor = model.data_preprocessor
    if stats is None or not hasattr(preprocessor, "mean"):
        return
    wanted = {key: [255 * value for value in stats[key]] for key in ("mean", "std")}
    given = {key: getattr(preprocessor, key).flatten().tolist() for key in wanted}
    same = all(
        abs(a - b) < 0.01 for key in wanted for a, b in zip(given[key], wanted[key], strict=True)
    )
    if same and preprocessor._channel_conversion:
        return
    lines = "".join(f"    {key}={[round(v, 4) for v in wanted[key]]},\n" for key in wanted)
    raise ValueError(
        "the data_preprocessor contradicts the rgb_stats of the checkpoint: it has "
        f"mean={[round(v, 4) for v in given['mean']]}, std={[round(v, 4) for v in given['std']]}, "
        f"bgr_to_rgb={bool(preprocessor._channel_conversion)}; give data_preprocessor\n{lines}"
        "    bgr_to_rgb=True,"
    )


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _given_strides(model: nn.Module) -> Iterator[tuple[str, tuple[float, ...]]]:
    for name, module in model.named_modules():
        generator = getattr(module, "prior_generator", None)
        if generator is not None and hasattr(generator, "strides"):
            key = "anchor_generator" if hasattr(module, "anchor_generator") else "prior_generator"
            yield f"{name}.{key}.strides", _along_x(generator.strides)
        if hasattr(module, "featmap_strides"):
            yield f"{name}.featmap_strides", tuple(module.featmap_strides)


def _along_x(strides: Sequence) -> tuple[float, ...]:
    return tuple(s[0] if isinstance(s, (tuple, list)) else s for s in strides)
