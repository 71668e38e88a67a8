"""The weights in the content of a checkpoint file, without the prefixes that wrappers add."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ropevit_mmdet.errors import UserError

_KEYS = ("state", "state_dict")  # of birder, of mmengine
# torch.compile, FSDP and activation checkpointing wrap any module; DDP, averages and Lightning all.
_ANYWHERE = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)
_COUNTERS = ("n_averaged", "steps")  # of torch's AveragedModel, of mmengine's averages


def find_weights(
    content: Any,
    source: str | Path,
    *,
    prefix: str | None = None,
    revise_keys: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in the content of a file under their plain names, and its other fields.

    Weights are the content itself, or its `state` (birder) or `state_dict` (mmengine). `prefix`, of
    which the last dot is optional as in mmengine, takes those below it (`"backbone."`) or below the
    key of a nested dict (`"teacher.backbone."`). `revise_keys`, patterns with their replacements,
    change all names first. Weights under other keys, or none below `prefix`, are a `UserError` that
    names the keys of the file.
    """
    fields = dict(content) if isinstance(content, Mapping) else {}
    key = next((key for key in _KEYS if _tensors(fields.get(key))), None)
    nested = [] if key else list(_nested(fields))
    weights: dict[str, Tensor] = _tensors(fields.pop(key)) if key else {}
    if not key and not nested and _are_weights(fields):
        weights, fields = _tensors(fields), {}
    for pattern, replacement in revise_keys:
        weights = {re.sub(pattern, replacement, key): value for key, value in weights.items()}
    if prefix is not None:
        return _below(prefix.removesuffix(".") + ".", weights, content, source), fields
    if nested:
        key = nested[0]
        raise UserError(
            f"checkpoint {source} keeps its weights under {' and '.join(map(repr, nested))}: for "
            f"a backbone, add prefix={key + '.'!r} to init_cfg; for a detector, save them alone, "
            "as torch.save(dict(state_dict=...), FILE)"
        )
    return unwrapped(weights), fields


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without counters and prefixes of wrappers: what all names share, but `backbone.`."""
    plain = OrderedDict(
        (_ANYWHERE.sub(r"\1", key), weights[key]) for key in weights if key not in _COUNTERS
    )
    outermost = next(iter(plain), "").partition(".")[0] + "."
    if outermost in (".", "backbone.") or not all(key.startswith(outermost) for key in plain):
        return plain
    return unwrapped({key.removeprefix(outermost): plain[key] for key in plain})


def fitting(targets: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`weights`, or without prefixes of wrappers if so more of them are those of a model."""
    plain = unwrapped(weights)
    return plain if number_fitting(targets, plain) > number_fitting(targets, weights) else weights


def renamed(weights: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights under the names of a model whose own names all share a prefix."""
    names = dict(zip(unwrapped(targets), (key for key in targets if key not in _COUNTERS)))
    return {names.get(key, key): weights[key] for key in weights}


def number_fitting(targets: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> int:
    """The number of targets that have weights of their name and shape."""
    return sum(key in weights and weights[key].shape == t.shape for key, t in targets.items())


def _below(
    prefix: str, weights: Mapping[str, Tensor], content: Any, source: str | Path
) -> dict[str, Tensor]:
    for named in (weights, unwrapped(weights), dict(_flat(content))):
        if any(key.startswith(prefix) for key in named):
            return unwrapped(
                {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
            )
    names = weights or dict(_flat(content))
    known = {".".join(key.split(".")[:depth]) + "." for key in names for depth in (1, 2)}
    raise UserError(
        f"checkpoint {source} has no weights below prefix={prefix!r}; its prefixes: "
        f"{', '.join(sorted(known - {f'{key}.' for key in names})) or 'none'}"
    )


def _tensors(value: Any) -> dict[str, Tensor]:
    """The tensors of a dict, without the other state that modules may have."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _are_weights(value: Any) -> bool:
    """Whether a dict has weights by their names; states of optimizers have not."""
    return any(key.endswith("weight") for key in _tensors(value))


def _nested(fields: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted keys of the dicts of weights in a file."""
    for key, value in fields.items():
        if _are_weights(value):
            yield f"{path}{key}"
        elif isinstance(value, Mapping):
            yield from _nested(value, f"{path}{key}.")


def _flat(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts under dotted keys."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, Tensor):
            yield f"{path}{key}", value
