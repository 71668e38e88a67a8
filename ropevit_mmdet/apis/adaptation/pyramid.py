"""The pyramid of a RoPEViT in place of a detector's backbone and neck."""

import math
from typing import Any, NamedTuple

from ropevit_mmdet.apis.adaptation.edits import Edits, plain
from ropevit_mmdet.apis.adaptation.edits import Path as KeyPath
from ropevit_mmdet.apis.adaptation.probe import Level, backbone_levels, neck_levels
from ropevit_mmdet.apis.adaptation.strides import StrideMap
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.weights.architectures import Arch

# Necks that only make levels of equal channels out of a backbone's: the pyramid replaces them.
_PYRAMIDS = (
    *("FPN", "FPN_DropBlock", "ChannelMapper", "HRFPN", "SSDNeck", "RFP", "SimpleFPN"),
    "SimpleFeaturePyramid",
)
_CHANNELS = 256  # of levels whose channels differ in the old backbone
_COARSEST_SCALE = 0.5  # that the pyramid pools itself; later levels halve the one before


class Levels(NamedTuple):
    """The levels that heads had, and what changed."""

    old: list[Level]
    channels: list[int]  # of the new levels
    coarsest: float  # pixels, the largest stride of the old backbone


def pyramid_and_necks(edits: Edits, path: KeyPath, arch: Arch, base: float) -> Levels:
    """Replaces a detector's neck, or puts the pyramid before it."""
    detector = edits.get(*path)
    neck = detector.get("neck")
    necks = neck if isinstance(neck, list) else [neck] if neck else []
    inputs = backbone_levels(detector["backbone"], neck)
    coarsest = max(level.stride for level in inputs)
    replaced = not necks or type_name(necks[0]) in _PYRAMIDS
    rest = necks[1:] if replaced else necks
    made = _levels_of_pyramid(necks[0], inputs) if necks and replaced else inputs
    outputs = neck_levels(rest, made) if rest else made
    if replaced:
        channels = {level.channels for level in made}
        width = channels.pop() if len(channels) == 1 else _CHANNELS
        extra = bool(necks) and (type_name(necks[0]) != "FPN" or necks[0].get("add_extra_convs"))
    else:
        made, rest = _inputs_of(edits, rest, inputs)
        given = rest[0].get("out_channels")
        width = given if isinstance(given, int) else _CHANNELS
        of_one = isinstance(rest[0]["in_channels"], int)
        rest[0]["in_channels"] = width if of_one else [width] * len(made)
        extra = False
    strides = StrideMap(made, base).new
    pyramid = _pyramid(arch, width, strides, bool(extra))
    edits.set((*path, "neck"), [pyramid, *rest] if rest else pyramid)
    new = [level.channels for level in outputs] if rest else [width] * len(outputs)
    return Levels(outputs, new, coarsest)


def _levels_of_pyramid(neck: dict[str, Any], inputs: list[Level]) -> list[Level]:
    """The levels of a neck that is replaced; of one that cannot be built, what its settings say."""
    try:
        return neck_levels(neck, inputs)
    except Exception:
        first = inputs[neck.get("start_level", 0)].stride
        return [Level(first * 2**i, neck["out_channels"]) for i in range(neck["num_outs"])]


def _inputs_of(
    edits: Edits, necks: list[dict], inputs: list[Level]
) -> tuple[list[Level], list[dict]]:
    """The levels that a neck uses, where it can do without the others, and the neck for them."""
    first = dict(necks[0])
    if isinstance(first.get("in_channels"), int):  # it reads the last level
        return inputs[-1:], [first, *necks[1:]]
    start = first.get("start_level") or 0
    used = inputs[start:]
    trimmed = first | dict(in_channels=[level.channels for level in used], start_level=0)
    try:
        if start and neck_levels([trimmed, *necks[1:]], used):
            return used, [trimmed, *necks[1:]]
    except Exception:  # it counts its inputs otherwise
        text = "the pyramid's first level is not used"
        edits.set(("find_unused_parameters",), True, text)
    return inputs, [first, *necks[1:]]


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
