"""What strides and image sizes decide in a config, as tables of keys, and the new values."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS

from ropevit_mmdet.compat.config import type_name, walk


class StrideMap:
    """From the strides of a detector's pyramid to those of ours.

    Args:
        strides: of the old pyramid in pixels, in its order.
        base: pixels; the new strides are this times powers of 2.
    """

    def __init__(self, strides: Sequence[float], base: float) -> None:
        self.base = base
        self.new: list[int | float] = []
        for i, stride in enumerate(strides):
            new = self.one(stride)
            if i and stride > strides[i - 1]:  # 64, 100, 300 of SSD
                new = max(new, 2 * self.new[-1])
            self.new.append(plain(new))
        self.ratio = self.new[0] / 2 ** round(math.log2(strides[0]))

    def one(self, stride: float) -> int | float:
        """The stride nearest to another one, by its logarithm."""
        return plain(self.base * 2.0 ** round(math.log2(stride / self.base)))

    def strides(self, old: Any) -> Any:
        """New strides for a list of old ones, of all levels (also reversed) or of some."""
        if not isinstance(old, (list, tuple)):
            return old
        flat = [one[0] if isinstance(one, (list, tuple)) else one for one in old]
        if len(set(flat)) == len(flat) == len(self.new):
            new = self.new[:: -1 if (flat[0] > flat[-1]) != (self.new[0] > self.new[-1]) else 1]
        else:
            new = [self.one(stride) for stride in flat]
        return old if flat == new else type(old)(new)

    def centers(self, old: Any) -> Any:
        """Half a stride, in x and y."""
        strides = self.strides([2 * x for x, _ in old])
        return [(plain(stride / 2),) * 2 for stride in strides]

    def pixels(self, old: Any) -> Any:
        """Scales pixels; of pairs (low, high) per level, the first low and last high stay."""
        if isinstance(old, (int, float)):
            return plain(old * self.ratio)
        new = [self.pixels(one) for one in old]
        if isinstance(old[0], (list, tuple)):
            new = [list(pair) for pair in new]
            new[0][0], new[-1][-1] = old[0][0], old[-1][-1]
            new = [type(old[0])(pair) for pair in new]
        return type(old)(new)

    def fraction(self, old: float) -> float:
        """The size of a level as a fraction of the image's."""
        return 1 / self.one(1 / old)

    def point_scale(self, old: float) -> int | float:
        """A point's level is the integer part of log2(stride): 2 for 7 pixels, 3 for 8."""
        return plain(old * self.new[0] / 2 ** math.floor(math.log2(self.new[0])))


# Settings of any part of a detector, or of one type, that strides decide.
_STRIDE_RULES = {
    **dict.fromkeys(("strides", "featmap_strides", "point_strides"), StrideMap.strides),
    **dict.fromkeys(("regress_ranges", "scale_ranges", "base_edge_list"), StrideMap.pixels),
    "finest_scale": StrideMap.pixels,
    "centers": StrideMap.centers,
    "seg_scale_factor": StrideMap.fraction,
    "PointAssigner.scale": StrideMap.point_scale,
}
# Pixels by which masks are sliced or multiplied: whole numbers.
_WHOLE = ("mask_stride", "mask_out_stride", "mask_loss_stride")
# Sizes of images in pixels, in transforms, batch augmentations and the anchors of SSD.
_SIZES = {
    *("scale", "scales", "img_scale", "crop_size", "size", "image_size", "random_size_range"),
    *("border", "width", "height", "input_size"),
}
_SIZED = ("train_dataloader", "val_dataloader", "test_dataloader", "tta_pipeline", "custom_hooks")


def stride_edits(settings: Mapping[str, Any], map: StrideMap) -> dict[str, Any]:
    """The settings of one part that strides decide, also by default, with their new values."""
    edits: dict[str, Any] = {}
    for key, value in _with_defaults(settings).items():
        rule: Any = _STRIDE_RULES.get(f"{type_name(settings)}.{key}", _STRIDE_RULES.get(key))
        new = rule(map, value) if rule and value else value
        if key not in settings and isinstance(value, Mapping):  # an anchor generator by default
            new = {**value, **stride_edits(value, map)}
        if new != value:
            edits[key] = new
    return edits


def needs_whole_strides(parts: Mapping[str, Any]) -> str:
    """A setting for which strides must stay whole numbers of pixels, or ''."""
    for path, settings in walk(parts):
        values = _with_defaults(settings)
        for key in _WHOLE:
            if values.get(key):
                return ".".join(map(str, (*path, key)))
    return ""


def test_side(config: Mapping[str, Any]) -> int | None:
    """The longer side in pixels of the images in a test, else in training; None if not fixed."""
    for name in ("test_dataloader", "val_dataloader", "train_dataloader"):
        sizes = [
            number
            for _, transform in walk(config.get(name))
            if "Resize" in type_name(transform) or name.startswith("train")
            for key in _SIZES - {"border", "input_size"}
            for number in _numbers(transform.get(key))
        ]
        if sizes:
            return max(sizes)
    return None


def scale_images(config: Mapping[str, Any], img_size: int) -> None:
    """Scales all sizes of images so that the longer side of a test is `img_size` pixels."""
    factor = img_size / (test_side(config) or img_size)
    for name in (*_SIZED, "model"):
        for path, settings in walk(config.get(name)):
            keys = _SIZES & settings.keys() if type_name(settings) else set()
            if name == "model" and "batch_augments" not in path:
                keys &= {"input_size"}
            settings.update({key: _scaled(settings[key], factor) for key in keys})


def plain(number: float) -> int | float:
    """An int if the value is whole."""
    return int(number) if number == int(number) else round(number, 6)


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of the type's constructor, through `**kwargs` also of its bases."""
    name, found = settings.get("type"), dict(settings)
    cls = (MODELS.get(name) or TASK_UTILS.get(name)) if name else None
    for one in getattr(cls, "__mro__", ()):
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters.values()
            for parameter in parameters:
                if parameter.default is not parameter.empty:
                    found.setdefault(parameter.name, parameter.default)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
    return found


def _numbers(value: Any) -> list[int]:
    """The sizes in pixels in a value; none in fractions and factors."""
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int) and abs(value) > 16 else []


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(part, factor) for part in value)
    return round(value * factor) if _numbers(value) else value
