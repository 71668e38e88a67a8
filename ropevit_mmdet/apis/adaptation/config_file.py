"""The config to adapt as plain values, and the file of what changed in it."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ropevit_mmdet.compat.config import KeyPath, type_name, walk
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError

_MISSING = object()
_LONGEST = 60  # characters of an old value in a comment


def read_config(config: str | os.PathLike[str] | Config) -> tuple[dict[str, Any], str | None]:
    """Reads a config: a file, `PACKAGE::NAME`, the name of a packaged config, or a `Config`.

    Returns:
        The settings, types that are classes as dotted names; and the base of configs that inherit
        it: an absolute path or `PACKAGE::NAME`, None of a `Config` or a Python-style file.
    """
    if isinstance(config, Config):
        return _plain(config.to_dict()), None
    name = os.fspath(config)
    loaded = load_config(name, imports=False)  # modules of the old backbone may be absent
    settings = _plain(loaded.to_dict())
    del settings["launcher"], settings["work_dir"]  # of load_config
    packaged = f"{name.removesuffix('.py')}.py"
    if "::" not in name and not Path(name).is_file():  # the name of one of ours
        packaged = f"ropevit_mmdet::{packaged}"
    base = packaged if "::" in packaged else str(Path(loaded.filename).resolve())
    is_python_style = base.endswith(".py") and Config._is_lazy_import(loaded.filename)
    return settings, None if is_python_style else base


def detector_path(model: Mapping[str, Any]) -> KeyPath:
    """The path of the detector in a model: of the outermost dict with a backbone.

    Raises:
        UserError: there is none, or it is none for single images; with the reason.
    """
    found = [path for path, part in walk(model) if type_name(part.get("backbone"))]
    part: Any = model
    for key in (path := min(found, key=len, default=())):
        part = part[key]
    preprocessor = type_name(model.get("data_preprocessor"))
    video = {"tracker", "track_head"} & model.keys() or preprocessor == "TrackDataPreprocessor"
    reason = (
        not found and "it has no backbone"
        or video and "it tracks objects in videos"
        or "language_model" in part and "it has a language model"
        or "head" in part and "it is a classifier"
        or "num_branch" in part["backbone"] and "its head needs the branches of its backbone"
    )  # fmt: skip
    if reason:
        raise UserError(f"cannot adapt {type_name(model) or 'a model without a type'}: {reason}")
    return path


def config_text(
    settings: Mapping[str, Any], old: Mapping[str, Any], base: str | None, directory: Path
) -> str:
    """A config in a directory: all of it, or what differs from the `old` base, with old values."""
    text = ""
    if base is not None:
        relative = base if "::" in base else os.path.relpath(base, directory.resolve())
        text = f"_base_ = {relative!r}\n"
    for key, value in difference(old if base else {}, settings).items():
        text += "".join(f"\n# {path} was {value}" for path, value in _old_values(old, {key: value}))
        text += f"\n{Config({key: value}).pretty_text}"
    needs_inf = re.search(r"(?<![\w'])inf\b", text)  # how mmengine writes float("inf")
    return "from math import inf\n\n" * bool(needs_inf) + text


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What to write on top of `old` to get `new`: mmengine merges dicts and replaces the rest."""
    changes: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and before.keys() <= value.keys()
            and before.get("type") == value.get("type")
        ):
            if parts := difference(before, value):
                changes[key] = parts
        elif type(before) is not type(value) or before != value:
            replaces = isinstance(value, Mapping) and before is not _MISSING
            changes[key] = {"_delete_": True, **value} if replaces else value
    return changes


def _old_values(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str]]:
    """The old values of changed entries by dotted key, of parts their types; no long ones."""
    for key in [key for key in new if key in old]:
        before, value = old[key], new[key]
        if isinstance(before, Mapping) and isinstance(value, Mapping) and "_delete_" not in value:
            yield from _old_values(before, value, f"{path}{key}.")
        elif len(shown := type_name(before) or repr(before)) <= _LONGEST:
            yield f"{path}{key}", shown


def _plain(value: Any) -> Any:
    """Without registry scopes, with classes and functions as dotted names."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if key != "_scope_"}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value
