"""Checkpoints of mmengine 0.10, loaded under `weights_only=True`.

torch >= 2.6 refuses the log buffers and numpy values of mmengine's training checkpoints: they are
allow-listed here. Those schemes of its CheckpointLoader that asked for no check are replaced.
"""

import pickle
from collections.abc import Callable

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

from ropevit_mmdet.compat.numpy_values import numpy_values
from ropevit_mmdet.compat.reading import read_torch_file

# Methods that mmengine's own objects carry in their state, pickled as getattr(class, name).
PICKLED_METHODS = {
    HistoryBuffer: ("min", "max", "current", "mean"),
    OneCycleParamScheduler: ("_annealing_cos", "_annealing_linear"),
}


def install() -> None:
    """Allow-list what training checkpoints hold, take over local paths. Idempotent."""
    torch.serialization.add_safe_globals(training_globals())
    register_scheme("", load_from_local)


def register_scheme(prefixes: str | tuple[str, ...], loader: Callable[..., dict]) -> None:
    """Have mmengine load every path that starts with a prefix by `loader(path, map_location)`.

    mmengine logs `loader.__name__` without its first ten characters: call it `load_from_NAME`.
    """
    mmengine_checkpoint.CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_local(filename: str, map_location=None) -> dict:
    """mmengine's scheme for plain paths; errors as in read_torch_file."""
    return read_torch_file(filename, map_location)


def training_globals() -> list:
    """What a training checkpoint of mmengine 0.10 names beyond tensors, for `add_safe_globals`.

    Log buffers, nested settings of a dataset, and what stands for numpy. Methods are pickled
    through `getattr`: here that name stands for `_pickled_method`, because the builtin would open
    every attribute of everything.
    """
    stand_ins = {**numpy_values(), "builtins.getattr": _pickled_method}
    return [*PICKLED_METHODS, ConfigDict, *((value, name) for name, value in stand_ins.items())]


def _pickled_method(owner: type, name: str) -> Callable:
    if not isinstance(owner, type) or name not in PICKLED_METHODS.get(owner, ()):
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {name!r} on {owner!r}")
    return getattr(owner, name)
