"""The levels that a backbone, or a backbone and a neck, give: strides and channels."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ropevit_mmdet.apis.adaptation.edits import plain, walk
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError

_SIDE = 512  # pixels: small enough for a CPU, large enough for the last levels of an SSD
_IMAGE = (1, 3, _SIDE, _SIDE)


class Level(NamedTuple):
    """A feature map of a pyramid."""

    stride: float  # pixels
    channels: int


def backbone_levels(backbone: Mapping[str, Any], neck: Any) -> list[Level]:
    """The levels of a backbone; of one that cannot be built here, those that its neck expects.

    Raises:
        UserError: neither can be determined.
    """
    try:
        return _run(backbone, [_IMAGE])
    except Exception as error:  # of code of any kind: a missing package, op or file
        first = neck[0] if isinstance(neck, list) else neck or {}
        channels = first.get("in_channels")
        if channels is None:
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"backbone {type_name(backbone)} cannot be built here ({cause}) and no neck shows "
                "its levels: install what it needs"
            ) from error
        channels = [channels] if isinstance(channels, int) else channels
        return [Level(32 / 2**i, c) for i, c in reversed(list(enumerate(reversed(channels))))]


def neck_levels(neck: Any, inputs: Sequence[Level]) -> list[Level]:
    """The levels that a neck, or a list of necks, makes of others. Any error is its own."""
    sides = [round(_SIDE / level.stride) for level in inputs]
    return _run(neck, [(1, level.channels, n, n) for level, n in zip(inputs, sides, strict=True)])


def _run(part: Any, inputs: Sequence[tuple[int, ...]]) -> list[Level]:
    """Builds a part without weights and runs it on zeros: without memory, or else on the CPU."""
    part = deepcopy(part)
    for _, settings in walk(part):
        settings.pop("init_cfg", None)
        if isinstance(settings.get("pretrained"), (str, bool)):
            settings["pretrained"] = False if settings["pretrained"] is True else None
    try:
        with FakeTensorMode():
            maps = _forward(part, inputs)
    except Exception:  # a constructor or an op that needs values
        maps = _forward(part, inputs)
    maps = [maps] if isinstance(maps, Tensor) else list(maps)
    return [Level(plain(_SIDE / one.shape[-1]), one.shape[1]) for one in maps]


def _forward(part: Any, inputs: Sequence[tuple[int, ...]]) -> Any:
    with torch.no_grad():
        module = MODELS.build(deepcopy(part))
        module.eval()  # a statement: mmdet's ResNet.train returns None
        maps = [torch.zeros(shape) for shape in inputs]
        return module(maps[0] if inputs == [_IMAGE] else tuple(maps))
