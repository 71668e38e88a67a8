"""Settings of heads that depend on strides, as data, and their values on other strides."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS

from ropevit_mmdet.apis.adaptation.edits import plain
from ropevit_mmdet.apis.adaptation.probe import Level
from ropevit_mmdet.compat.config import type_name

PER_LEVEL = ("strides", "featmap_strides", "point_strides")  # pixels
RANGES = ("regress_ranges", "scale_ranges", "base_edge_list", "finest_scale")  # pixels
FRACTIONS = ("seg_scale_factor",)  # of the image, of one level
# Pixels by which masks are sliced or multiplied: whole numbers.
WHOLE = ("mask_stride", "mask_out_stride", "mask_loss_stride")


class StrideMap:
    """From the strides of a detector's pyramid to those of ours.

    Args:
        levels: the old pyramid, in its order.
        base: pixels; the new strides are this times powers of 2.
    """

    def __init__(self, levels: Sequence[Level], base: float) -> None:
        self.base, self.old = base, [level.stride for level in levels]
        self.new: list[int | float] = []
        for i, stride in enumerate(self.old):
            new = self.one(stride)
            if i and stride > self.old[i - 1]:  # 64, 100, 300 of SSD
                new = max(new, 2 * self.new[-1])
            self.new.append(plain(new))

    @property
    def ratio(self) -> float:
        return self.new[0] / 2 ** round(math.log2(self.old[0]))

    def one(self, stride: float) -> int | float:
        """The stride nearest to another one, by its logarithm."""
        return plain(self.base * 2.0 ** round(math.log2(stride / self.base)))

    def strides(self, old: Any) -> Any:
        """New strides for a list of old ones, of all levels (also reversed) or of some."""
        flat = [one[0] if isinstance(one, (list, tuple)) else one for one in old]
        rising = len(set(flat)) == len(flat)
        if len(flat) == len(self.new) and rising:
            reverse = (flat[0] > flat[-1]) != (self.new[0] > self.new[-1])
            new = self.new[::-1] if reverse else list(self.new)
        else:
            new = [self.one(stride) for stride in flat]
        return type(old)(new) if [*flat] != new else old

    def pixels(self, old: Any) -> Any:
        """Scales pixels; of pairs (low, high) per level, the first low and last high stay."""
        if isinstance(old, (int, float)):
            return plain(old * self.ratio)
        if not isinstance(old[0], (list, tuple)):
            return type(old)(self.pixels(one) for one in old)
        new = [[self.pixels(one) for one in pair] for pair in old]
        new[0][0], new[-1][-1] = old[0][0], old[-1][-1]
        return type(old)(type(old[0])(pair) for pair in new)


def stride_edits(settings: Mapping[str, Any], map: StrideMap) -> Iterator[tuple[str, Any]]:
    """The keys of one module's settings that strides decide, defaults included, with new values."""
    values = {**_defaults(settings), **settings}
    for key in values.keys() - settings.keys():  # an anchor generator as default of a head
        if isinstance(values[key], Mapping):
            edited = {**values[key], **dict(stride_edits(values[key], map))}
            if edited != values[key]:
                yield key, edited
    for key in PER_LEVEL:
        if isinstance(values.get(key), (list, tuple)):
            yield key, map.strides(values[key])
    if map.ratio != 1:
        for key in RANGES:
            if values.get(key):
                yield key, map.pixels(values[key])
        for key in FRACTIONS:
            if values.get(key):
                yield key, 1 / map.one(1 / values[key])
    if settings.get("centers") and map.strides(strides := values["strides"]) != strides:
        yield "centers", [(plain(stride / 2),) * 2 for stride in map.strides(strides)]
    if type_name(settings) == "PointAssigner" and map.ratio != 1:
        # A point's level is the integer part of log2(stride): 2 for 7 pixels, 3 for 8.
        yield "scale", plain(values["scale"] * map.new[0] / 2 ** math.floor(math.log2(map.new[0])))


def default_of(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a setting, given or by default."""
    return settings.get(key, _defaults(settings).get(key))


def needs_whole_strides(settings: Mapping[str, Any]) -> list[str]:
    """The settings for which strides must stay whole numbers of pixels."""
    values = {**_defaults(settings), **settings}
    return [key for key in WHOLE if values.get(key)]


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the constructor of a settings' type, through `**kwargs` also of its bases."""
    name = settings.get("type")
    cls = (MODELS.get(name) or TASK_UTILS.get(name)) if name else None
    found: dict[str, Any] = {}
    for one in getattr(cls, "__mro__", ()):
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one.__init__).parameters.values()
        for parameter in parameters:
            if parameter.default is not inspect.Parameter.empty:
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found
