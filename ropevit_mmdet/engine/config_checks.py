"""Checks what a config says about its run: loops, samplers, data loaders, types and arguments."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, getmro, isclass, signature
from typing import Any

from mmdet import registry
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, Registry, init_default_scope
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch.utils.data import DataLoader

from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError

_RUN = {
    "train": "train_cfg train_dataloader optim_wrapper param_scheduler randomness".split(),
    "val": "val_cfg val_dataloader val_evaluator".split(),
    "test": "test_cfg test_dataloader test_evaluator".split(),
}
_COMMON = "default_hooks custom_hooks visualizer log_processor".split()
# What mmengine calls with settings that have no type, by their key.
_DEFAULTS: dict[str, Callable] = {
    **{"train_cfg": IterBasedTrainLoop, "val_cfg": ValLoop, "test_cfg": TestLoop},
    **{"optim_wrapper": OptimWrapper, "log_processor": LogProcessor},
    **{f"{split}_dataloader": DataLoader for split in _RUN},
    **{f"{split}_evaluator": Evaluator for split in _RUN},
    "randomness": Runner.set_randomness,
}
# Keys that mmengine reads itself.
_READ_BY_MMENGINE = {
    *("type", "_scope_", "by_epoch", "priority", "convert_to_iter_based"),
    *("constructor", "paramwise_cfg", "num_batch_per_epoch", "disable_subprocess_warning"),
}
_REGISTRIES = [
    *(one for one in vars(registry).values() if isinstance(one, Registry) and one.scope == "mmdet"),
    FUNCTIONS,
]


def check_config(config: Config, splits: Sequence[str]) -> list[str]:
    """Checks the settings of a run of `splits`, except for the model; returns warnings.

    Raises:
        UserError: With the first issue: settings that a split needs; a sampler without an end, or a
            schedule of epochs, that does not fit the loop; workers; unknown types and arguments.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    keys = [key for split in splits for key in _RUN[split]] + _COMMON
    given = {key: config[key] for key in keys if config.get(key) is not None}
    issues = [
        *(issue for split in splits for issue in _missing(given, split)),
        *(issue for path, settings in _walk(given) for issue in _type_issues(path, settings)),
        *(issue for split in splits for issue in _loader_issues(given, split)),
        *_schedule_issues(given),
    ]
    if issues:
        raise UserError(issues[0])
    return list(_checkpoint_warnings(given))


def _missing(given: Mapping[str, Any], split: str) -> Iterator[str]:
    needed = [key for key in _RUN[split] if key not in ("param_scheduler", "randomness")]
    missing = [key for key in needed if key not in given]
    if missing and (split != "val" or len(missing) < len(needed)):
        yield f"the config has no {missing[0]}"


def _walk(settings: Any, path: str = "") -> Iterator[tuple[str, Mapping]]:
    """All dicts with their dotted keys, except for those of other packages."""
    if isinstance(settings, (list, tuple)):
        settings = dict(enumerate(settings))
    elif isinstance(settings, Mapping) and settings.get("_scope_", "mmdet") == "mmdet":
        yield path, settings
    else:
        return
    for key, one in settings.items() if type_name(settings) != "Albu" else ():
        if key not in ("clip_grad", "init_kwargs"):  # their types are not registered
            yield from _walk(one, f"{path}.{key}".lstrip("."))


def _type_issues(path: str, settings: Mapping) -> Iterator[str]:
    """A type that is unknown, and arguments that it does not have."""
    target = _target(path, settings)
    if target is None and "type" in settings:
        others = [one for one in _REGISTRIES if one is not registry.MODELS]
        close = _close(settings["type"], [name for one in others for name in _names(one)])
        yield f"{path}.type: nothing is registered as {settings['type']!r}{close}"
    names = _parameters(target) if callable(target) else []
    for key in settings if names else ():
        if key not in _READ_BY_MMENGINE and key not in names:
            yield f"{path}.{key}: {target.__name__} has no argument {key!r}{_close(key, names)}"


def _target(path: str, settings: Mapping) -> Any:
    """What mmengine calls with settings; None if it is unknown, or nothing."""
    given = settings.get("type")
    if path == "train_cfg" and not given and settings.get("by_epoch"):
        return EpochBasedTrainLoop
    if not isinstance(given, str):
        return given or _DEFAULTS.get(path)
    return next((found for one in _REGISTRIES if (found := one.get(given))), None)


def _names(one: Registry) -> list[str]:
    return [*one.module_dict, *(one.parent.module_dict if one.parent else ())]


def _parameters(target: Callable) -> list[str]:
    """Names of the arguments of a class or function; none if it takes any."""
    names: list[str] = []
    for one in getmro(target) if isclass(target) else [target]:
        function = vars(one).get("__init__") if isclass(one) else one
        if function is None:
            continue
        parameters = signature(function).parameters
        names += parameters
        passes_on = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
        if not passes_on or one is CheckpointHook:  # it fails with others when it saves
            return names
    return []


def _close(name: Any, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _loader_issues(given: Mapping[str, Any], split: str) -> Iterator[str]:
    path = f"{split}_dataloader"
    loader = given.get(path)
    if not isinstance(loader, Mapping):  # built, in Python
        return
    for key in ("persistent_workers", "prefetch_factor", "timeout"):
        if loader.get(key) and not loader.get("num_workers"):
            yield f"{path}.{key}={loader[key]} needs num_workers of 1 or more: remove it"
    sampler = loader.get("sampler") or {}
    endless = _is_a(sampler, InfiniteSampler) or _is_a(sampler, MultiSourceSampler)
    if endless and (split != "train" or not _counts_iterations(given)):
        yield (
            f"{path}.sampler: an epoch of {type_name(sampler)} never ends, and the loop waits for "
            f"it: use sampler = dict(type='DefaultSampler', shuffle={split == 'train'})"
        )


def _schedule_issues(given: Mapping[str, Any]) -> Iterator[str]:
    for path, one in _walk({"param_scheduler": given.get("param_scheduler")}):
        begin, end = one.get("begin", 0), one.get("end", math.inf)
        if begin >= end:
            text = f"{path}: begin={begin} is not before end={end}"
            yield f"{text}: shorten the warm-up, or train for longer"
        by_epoch = one.get("by_epoch", True) and not one.get("convert_to_iter_based")
        by_epoch = by_epoch and "type" in one and "Plateau" not in type_name(one)
        if by_epoch and _counts_iterations(given):
            yield (
                f"{path}: {type_name(one)} counts epochs, and an IterBasedTrainLoop is one: set "
                "by_epoch=False, and begin and end in iterations"
            )


def _checkpoint_warnings(given: Mapping[str, Any]) -> Iterator[str]:
    hooks = [given.get("default_hooks"), given.get("custom_hooks")]
    for _, hook in _walk(hooks if _counts_iterations(given) else None):
        if _is_a(hook, CheckpointHook) and hook.get("by_epoch", True):
            yield (
                f"{type_name(hook)} counts epochs, and an IterBasedTrainLoop is one: it saves only "
                "at the end; set by_epoch=False, and interval in iterations"
            )


def _counts_iterations(given: Mapping[str, Any]) -> bool:
    loop = _target("train_cfg", given["train_cfg"]) if "train_cfg" in given else None
    return isclass(loop) and issubclass(loop, IterBasedTrainLoop)


def _is_a(settings: Mapping, base: type) -> bool:
    cls = _target("", settings)
    return isclass(cls) and issubclass(cls, base)
