"""Checks what a config says about its run: loops, samplers, data loaders, schedules, figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import isclass, signature
from typing import Any

from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.registry import DATA_SAMPLERS, HOOKS, LOOPS, METRICS, OPTIMIZERS
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import IterBasedTrainLoop

from ropevit_mmdet.compat.config import metric_settings, type_name, walk
from ropevit_mmdet.errors import UserError

_NEEDED = {
    "train": "train_cfg train_dataloader optim_wrapper".split(),
    "val": "val_cfg val_dataloader val_evaluator".split(),
    "test": "test_cfg test_dataloader test_evaluator".split(),
}
_HOOK_SETTINGS = {"type", "_scope_", "priority", *signature(CheckpointHook).parameters}


def check_config(config: Config, splits: Sequence[str]) -> list[str]:
    """Checks the settings of a run of `splits`, except for the model; returns warnings.

    Most unknown types and arguments are not among them: mmengine names these before the first
    iteration.

    Raises:
        UserError: With the first issue: settings that a split needs; a sampler without an end, or a
            schedule of epochs, that does not fit the loop; workers; figures that no metric has.
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    issues = [issue for split in splits for issue in _missing(config, split)]
    if "train" in splits:
        issues += [*_type_issues(config), *_schedule_issues(config), *_figure_issues(config)]
    issues += [issue for split in splits for issue in _loader_issues(config, split)]
    if issues:
        raise UserError(issues[0])
    return [*_name_warnings(config), *(_checkpoint_warnings(config) if "train" in splits else ())]


def _missing(config: Config, split: str) -> Iterator[str]:
    missing = [key for key in _NEEDED[split] if config.get(key) is None]
    if missing and (split != "val" or len(missing) < len(_NEEDED[split])):
        yield f"the config has no {missing[0]}"


def _loader_issues(config: Config, split: str) -> Iterator[str]:
    path = f"{split}_dataloader"
    loader = config.get(path)
    if not isinstance(loader, Mapping):  # built, in Python, or none
        return
    for key in ("persistent_workers", "prefetch_factor", "timeout"):
        if loader.get(key) and not loader.get("num_workers"):
            yield f"{path}.{key}={loader[key]} needs num_workers of 1 or more: remove it"
    sampler = loader.get("sampler") or {}
    endless = _is_a(sampler, DATA_SAMPLERS, (InfiniteSampler, MultiSourceSampler))
    if endless and (split != "train" or not _counts_iterations(config)):
        yield (
            f"{path}.sampler: an epoch of {type_name(sampler)} never ends, and the loop waits for "
            f"it: use sampler = dict(type='DefaultSampler', shuffle={split == 'train'})"
        )


def _schedule_issues(config: Config) -> Iterator[str]:
    for path, one in _walk(config, "param_scheduler"):
        begin, end = one.get("begin", 0), one.get("end", math.inf)
        if begin >= end:
            text = f"{path}: begin={begin} is not before end={end}"
            yield f"{text}: shorten the warm-up, or train for longer"
        by_epoch = one.get("by_epoch", True) and not one.get("convert_to_iter_based")
        by_epoch = by_epoch and "type" in one and "Plateau" not in type_name(one)
        if by_epoch and _counts_iterations(config):
            yield (
                f"{path}: {type_name(one)} counts epochs, and an IterBasedTrainLoop is one: set "
                "by_epoch=False, and begin and end in iterations"
            )


def _type_issues(config: Config) -> Iterator[str]:
    """What mmengine, or another check, would name late or not."""
    registries = {"optimizer": OPTIMIZERS, "train_cfg": LOOPS}
    for path, one in _walk(config, "optim_wrapper", "train_cfg"):
        registry = registries.get(path.rpartition(".")[2])
        if registry is not None and "type" in one and _target(one, registry) is None:
            yield f"{path}.type: nothing is registered as {one['type']!r}"
    for path, hook, cls in _checkpoint_hooks(config):
        for key in sorted(hook.keys() - _HOOK_SETTINGS - signature(cls).parameters.keys()):
            yield f"{path}.{key}: {cls.__name__} has no argument {key!r}"


def _figure_issues(config: Config) -> Iterator[str]:
    """Figures by their names of MMDetection 2: the first validation ends in an error, or they are
    ignored.
    """
    prefixes = [
        one.get("prefix") or getattr(_target(one, METRICS), "default_prefix", None)
        for one in metric_settings(config.get("val_evaluator"))
    ]
    known = bool(prefixes) and all(prefixes)
    hooks = _walk(config, "default_hooks", "custom_hooks")  # a user's own may monitor anything
    readers = [*_walk(config, "param_scheduler")]
    readers += [one for one in hooks if _is_a(one[1], HOOKS, (CheckpointHook, EarlyStoppingHook))]
    for path, one in readers:
        for key in ("save_best", "monitor"):
            names = one.get(key) or ()
            for name in [names] if isinstance(names, str) else names:
                if known and "/" not in name and name != "auto" and "loss" not in name:
                    yield f"{path}.{key}: validation has no {name!r}: set '{prefixes[0]}/{name}'"


def _checkpoint_warnings(config: Config) -> Iterator[str]:
    for _, hook, cls in _checkpoint_hooks(config) if _counts_iterations(config) else ():
        if hook.get("by_epoch", True):
            yield (
                f"{cls.__name__} counts epochs, and an IterBasedTrainLoop is one: it saves only "
                "at the end; set by_epoch=False, and interval in iterations"
            )


def _name_warnings(config: Config) -> Iterator[str]:
    """Similar names in `train_cfg` and `test_cfg` of a model, where nothing checks names."""
    for at, one in walk(config.get("model")):
        names = list(one) if {"train_cfg", "test_cfg"} & {*at} else []
        for number, name in enumerate(names):
            for close in get_close_matches(name, names[:number], n=1, cutoff=0.85):
                path = ".".join(map(str, ("model", *at, name)))
                yield f"{path} and {close} are both set: one that is a typo has no effect"


def _checkpoint_hooks(config: Config) -> Iterator[tuple[str, Mapping, type]]:
    for path, hook in _walk(config, "default_hooks", "custom_hooks"):
        if _is_a(hook, HOOKS, CheckpointHook):
            yield path, hook, _target(hook, HOOKS)


def _walk(config: Config, *keys: str) -> Iterator[tuple[str, Mapping]]:
    """All dicts of top-level keys, and their dotted keys."""
    for at, one in walk({key: config.get(key) for key in keys}):
        yield ".".join(map(str, at)), one


def _counts_iterations(config: Config) -> bool:
    loop = config.get("train_cfg") or {}
    return _is_a(loop, LOOPS, IterBasedTrainLoop) or loop.get("by_epoch") is False


def _is_a(settings: Mapping, registry: Registry, bases: Any) -> bool:
    cls = _target(settings, registry)
    return isclass(cls) and issubclass(cls, bases)


def _target(settings: Mapping, registry: Registry) -> Any:
    given = settings.get("type")
    return registry.get(given) if isinstance(given, str) else given
