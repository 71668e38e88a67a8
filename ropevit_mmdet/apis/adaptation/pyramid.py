"""The pyramid of a RoPEViT in place of a detector's backbone and neck."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from logging import WARNING
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ropevit_mmdet.apis.adaptation.rules import StrideMap, plain
from ropevit_mmdet.compat.config import as_list, type_name, walk
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch

# Necks that only make levels of equal channels out of a backbone's: the pyramid replaces them.
_PYRAMIDS = (
    *("FPN", "FPN_DropBlock", "ChannelMapper", "HRFPN", "SSDNeck", "RFP", "SimpleFPN"),
    "SimpleFeaturePyramid",
)
_CHANNELS = 256  # of levels whose channels differ in the old backbone
_COARSEST_SCALE = 0.5  # that the pyramid pools itself; later levels halve the one before
_SIDE = 512  # pixels: small enough for a CPU, large enough for the last levels of an SSD


class Level(NamedTuple):
    """A feature map."""

    stride: float  # pixels
    channels: int


class Levels(NamedTuple):
    """What heads get in place of what they had."""

    old: list[Level]
    channels: list[int]  # of the new levels
    coarsest: float  # pixels, the largest stride of the old backbone
    is_partial: bool  # the neck does not use all levels of the pyramid


def replace_neck(detector: dict[str, Any], arch: Arch, base: float) -> Levels:
    """Puts the pyramid in the place of a detector's neck, or before one that does more.

    Backbone and neck are built and run to see their levels.

    Args:
        detector: settings with `backbone` and `neck`; the latter is set.
        arch: of the RoPEViT.
        base: pixels; the pyramid's strides are this times powers of 2.

    Raises:
        UserError: the levels cannot be determined.
    """
    necks, is_partial = as_list(detector.get("neck")), False
    inputs = _backbone_levels(detector["backbone"], necks)
    coarsest = max(level.stride for level in inputs)
    first = necks[0] if necks else {}
    if necks and type_name(first) not in _PYRAMIDS:
        outputs = _run(necks, inputs)
        inputs, first, is_partial = _used(necks, inputs)
        width = first.get("out_channels")
        width = width if isinstance(width, int) else _CHANNELS
        given = first.get("in_channels")
        if given is None:
            raise UserError(f"neck {type_name(first)} has no in_channels, which are to be set")
        first["in_channels"] = width if isinstance(given, int) else [width] * len(inputs)
        necks, extra_convs = [first, *necks[1:]], False
    else:
        inputs, necks = _pyramid_levels(first, inputs) if necks else inputs, necks[1:]
        outputs = _run(necks, inputs) if necks else inputs
        channels = {level.channels for level in inputs}
        width = channels.pop() if len(channels) == 1 else _CHANNELS
        of_all = type_name(first) not in ("", "FPN")
        extra_convs = of_all or bool(first.get("add_extra_convs"))
    strides = StrideMap([level.stride for level in inputs], base).new
    pyramid = _pyramid(arch, width, strides, extra_convs)
    detector["neck"] = [pyramid, *necks] if necks else pyramid
    new = [level.channels for level in outputs] if necks else [width] * len(outputs)
    return Levels(outputs, new, coarsest, is_partial)


def _backbone_levels(backbone: Mapping[str, Any], necks: list[dict[str, Any]]) -> list[Level]:
    """The levels of a backbone; of one that cannot be built here, those that its neck expects."""
    try:
        return _run(backbone)
    except UserError as error:
        channels = as_list(necks[0].get("in_channels")) if necks else []
        if not channels:
            raise
        strides = [32 / 2**i for i in reversed(range(len(channels)))]
        print_log(f"{error}; its strides are taken to be {strides}", "current", WARNING)
        return list(map(Level, strides, channels))


def _pyramid_levels(neck: dict[str, Any], inputs: list[Level]) -> list[Level]:
    """The levels of a neck that is replaced; of one that cannot be built, what its settings say."""
    try:
        return _run(neck, inputs)
    except UserError:
        first = inputs[neck.get("start_level", 0)].stride
        return [Level(first * 2**i, neck["out_channels"]) for i in range(neck["num_outs"])]


def _used(
    necks: list[dict[str, Any]], inputs: list[Level]
) -> tuple[list[Level], dict[str, Any], bool]:
    """The levels that the first neck uses, its settings for them, and whether it ignores some."""
    neck = dict(necks[0])
    if isinstance(neck.get("in_channels"), int):  # it reads the last level
        return inputs[-1:], neck, False
    start = neck.get("start_level") or 0
    used = inputs[start:]
    trimmed = neck | dict(in_channels=[level.channels for level in used], start_level=0)
    try:
        if start and _run([trimmed, *necks[1:]], used):
            return used, trimmed, False
    except UserError:  # it counts its inputs otherwise
        return inputs, neck, True
    return inputs, neck, False


def _run(part: Any, inputs: Sequence[Level] = ()) -> list[Level]:
    """The levels of a neck or several; of a backbone if there are no `inputs`.

    On tensors without memory if possible: deformable convolutions crash on the NaN that weights
    without initialization may give.

    Raises:
        UserError: a part that cannot be built or run here, with the cause.
    """
    part = deepcopy(part)
    for _, settings in walk(part):
        settings.pop("init_cfg", None)
        if isinstance(settings.get("pretrained"), (str, bool)):
            settings["pretrained"] = False if settings["pretrained"] is True else None
    try:
        try:
            with FakeTensorMode():
                maps = _forward(part, inputs)
        except Exception:  # a constructor or an op that needs values
            maps = _forward(part, inputs)
    except Exception as error:  # of code of any kind: a missing package, op or file
        name, cause = " + ".join(map(type_name, as_list(part))), f"{type(error).__name__}: {error}"
        raise UserError(f"{name} cannot be built here ({cause.splitlines()[0]})") from error
    return [Level(plain(_SIDE / one.shape[-1]), one.shape[1]) for one in maps]


def _forward(part: Any, inputs: Sequence[Level]) -> Sequence[Tensor]:
    module = MODELS.build(deepcopy(part))
    module.eval()  # a statement: mmdet's ResNet.train returns None
    given = tuple(torch.zeros(1, c, *[round(_SIDE / stride)] * 2) for stride, c in inputs)
    with torch.no_grad():
        maps = module(given or torch.zeros(1, 3, _SIDE, _SIDE))
    return [maps] if isinstance(maps, Tensor) else maps


def _pyramid(arch: Arch, width: int, strides: list, extra_convs: bool) -> dict[str, Any]:
    patch = arch.patch_size
    scales = [min(4, 2.0 ** -round(math.log2(stride / patch))) for stride in strides]
    own = len(scales)
    while own > 1 and scales[own - 1] < _COARSEST_SCALE and 2 * scales[own - 1] == scales[own - 2]:
        own -= 1
    settings: dict[str, Any] = dict(
        type="SimpleFeaturePyramid",
        in_channels=arch.hidden_dim,
        out_channels=width,
        in_stride=patch,
        scale_factors=tuple(plain(scale) for scale in scales[:own]),
        num_outs=len(strides),
    )
    if extra_convs and own < len(strides):
        settings["add_extra_convs"] = "on_output"
    if [patch / scale for scale in scales] != list(strides):
        settings["out_strides"] = list(strides)
    return settings
