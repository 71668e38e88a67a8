"""Checks at the start of a run: strides and colours that contradict each other stop it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ropevit_mmdet.backbone import RoPEViT
from ropevit_mmdet.checkpoint import read_checkpoint
from ropevit_mmdet.weights.lookup import resolve_weights


@HOOKS.register_module()
class RoPEViTChecks(Hook):
    """Stops a run whose heads were given other strides than the pyramid has, or whose
    preprocessor normalises colours otherwise than the checkpoint was trained with. Warns of a batch
    that is not the one its learning rate is for.

    Raises (as the run starts):
        ValueError: both values, and the lines to paste.
    """

    def before_run(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_strides(model)
        check_colours(model)

    def before_train(self, runner) -> None:
        warning = batch_warning(
            runner.cfg.get("auto_scale_lr") or {},
            runner.world_size,
            runner.train_dataloader.batch_size,
        )
        if warning:
            runner.logger.warning(warning)


def batch_warning(auto_scale_lr: Mapping, processes: int, per_process: int | None) -> str | None:
    """What to say if the batch is not the config's ``base_batch_size``; None if all is well."""
    base = auto_scale_lr.get("base_batch_size")
    if base is None or per_process is None or processes * per_process == base:
        return None
    scaled = auto_scale_lr.get("enable")
    rate = "is scaled to it" if scaled else "is not (--auto-scale-lr does so)"
    return (
        f"batch size {processes * per_process} ({processes} x {per_process}), the config is made "
        f"for {base}: the learning rate {rate}, and the run sees "
        f"{processes * per_process / base:.3g} times the pictures that its schedule means"
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
