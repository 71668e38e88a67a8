"""Checks at the start of a run: strides, colors and classes that contradict each other stop it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.engine.optimizers.rope_vit_layer_decay import group_table, parameter_counts
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.lookup import resolve_weights

# Heads whose num_classes is the dataset's: an RPN has 1, one of stuff has others.
_HEAD = re.compile(r"(^|\.)(bbox|mask)_head(\.\d+)?$")


@HOOKS.register_module()
class RoPEViTChecks(Hook):
    """Stops a run whose heads were given other strides than the pyramid has or another number of
    classes than the dataset, or whose preprocessor normalises colors otherwise than the
    checkpoint was trained with. Warns of a batch that is not the one its learning rate is for.

    Raises (as the run starts):
        ValueError: both values, and the lines to paste.
    """

    def before_run(self, runner) -> None:
        model = _bare(runner.model)
        check_strides(model)
        started = getattr(runner, "_load_from", None) or getattr(runner, "_resume", False)
        if not started:  # else nothing reads the backbone's own file
            check_colors(model)

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
        groups = getattr(runner.optim_wrapper, "param_groups", [{}])
        scaled = (runner.cfg.get("auto_scale_lr") or {}).get("enable")
        if "layer" in groups[0] and (runner._resume or scaled):
            rates = [{**group, "lr": group.get("initial_lr", group["lr"])} for group in groups]
            cause = "as the checkpoint has it" if runner._resume else "scaled to the batch"
            counts = parameter_counts(runner.model, groups)
            runner.logger.info(f"layer decay, {cause}:\n{group_table(rates, counts)}")

    def before_test(self, runner) -> None:
        check_num_classes(_bare(runner.model), runner.test_loop.dataloader.dataset)


def batch_warning(
    auto_scale_lr: Mapping, processes: int, per_process: int | None, passes: int = 1
) -> str | None:
    """What to say if the batch is not the config's ``base_batch_size``; None if all is well.

    That is the batch of one pass, which mmengine scales by. ``passes`` of them are a step; the
    config is made for as many as ``auto_scale_lr`` has under ``passes``, if it says so.
    """
    base, base_passes = auto_scale_lr.get("base_batch_size"), auto_scale_lr.get("passes", passes)
    if base is None or per_process is None:
        return None
    batch = processes * per_process
    if (batch, passes) == (base, base_passes):
        return None
    step, base_step = batch * passes, base * base_passes
    if auto_scale_lr.get("enable"):
        rate = "is scaled to it" if passes == base_passes else "is scaled to a pass, not to a step"
    elif step == base_step:
        rate = "fits"
    else:
        rate = f"does not fit: multiply it by {step / base_step:.3g}"
        rate += " (--auto-scale-lr does so)" if passes == base_passes else ""
    schedule = ""
    if passes != base_passes:
        schedule = (
            f"; iterations count passes: give train_cfg, param_scheduler and the checkpoint's "
            f"interval {passes / base_passes:.3g} times as many, and then "
            f"auto_scale_lr=dict(base_batch_size={batch}, passes={passes})"
        )
    return (
        f"a step has {step} images ({processes} x {per_process}"
        f"{f' in {passes} passes' if passes > 1 else ''}), the config is made for {base_step}: "
        f"the learning rate {rate}, and the run sees "
        f"{batch / base:.3g} times the images that its schedule means{schedule}"
    )


def check_num_classes(model: nn.Module, dataset: Any) -> None:
    """Compares the number of classes of every box and mask head with the dataset's.

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
                f"{name}.num_classes is {number}, but the dataset has {len(classes)} classes "
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
    for part, given, ranged in _given_strides(model):
        expected = tuple(strides)[: len(given)] if "featmap_strides" in part else tuple(strides)
        if given != expected:
            more = ", and its regress_ranges, which are pixels too"
            raise ValueError(
                f"{part} is {list(given)}, but the neck gives {list(strides)} pixels; "
                f"set {part}={list(expected)}{more if ranged else ''}"
            )


def check_colors(model: nn.Module) -> None:
    """Compares the preprocessor's mean, std and channel order with the backbone's checkpoint.

    Raises:
        ValueError: they differ; gives the lines to paste.
    """
    backbone = getattr(model, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)  # in a FrozenBackbone
    init_cfg = getattr(backbone, "init_cfg", None)
    if not isinstance(backbone, RoPEViT) or not init_cfg or init_cfg.get("type") != "Pretrained":
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


def _given_strides(model: nn.Module) -> Iterator[tuple[str, tuple[float, ...], bool]]:
    """The key of every part's strides, the strides, and whether ranges in pixels go with them."""
    for name, module in model.named_modules():
        generator = getattr(module, "prior_generator", None)
        if generator is not None and hasattr(generator, "strides"):
            if isinstance(module, AnchorFreeHead):
                key = "strides"
            else:
                key = f"{'anchor' if isinstance(module, AnchorHead) else 'prior'}_generator.strides"
            yield f"{name}.{key}", _along_x(generator.strides), hasattr(module, "regress_ranges")
        if hasattr(module, "featmap_strides"):
            yield f"{name}.featmap_strides", tuple(module.featmap_strides), False


def _along_x(strides: Sequence) -> tuple[float, ...]:
    return tuple(s[0] if isinstance(s, (tuple, list)) else s for s in strides)
