"""Finds variables of a base config that a child config sets without any effect.

mmengine evaluates a base before its child. Settings of the base, such as `train_cfg`, then have the
values that its variables, such as `max_iters`, had there.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ropevit_mmdet.compat.config import flat


def ineffective_variables(file: Path, settings: Set[str]) -> Iterator[str]:
    """Messages about top-level names, other than `settings`, of a config file and of its bases.

    A name is reported if the file does not use it, a base made settings of it, and these have the
    base's value of it and nowhere the file's.
    """
    nodes, bases = _read(file)
    own = {name for node in nodes for name in _assigned(node)} - settings
    own.difference_update(*(_loaded(node) - _assigned(node) for node in nodes))
    for base in bases if ".mim" not in file.parts else ():  # users cannot edit a package's
        yield from ineffective_variables(base, settings)
        used = {name: keys for name in own if (keys := _made_of(base, {name}) & settings)}
        if not used:
            continue
        read = (Config.fromfile(one, import_custom_modules=False) for one in (base, file))
        before, after = (one.to_dict() for one in read)
        for name in sorted(used.keys() & before.keys()):
            made = {key: after.get(key) for key in sorted(used[name])}
            left = [at for at, one in flat(made) if at and _has(one, before[name])]
            if left and not any(_has(one, after.get(name)) for _, one in flat(made)):
                listed = " and ".join(".".join(map(str, at)) for at in left[:3])
                yield f"{name} of {file} has no effect: {base} has already used it; set {listed}"


def _read(file: Path) -> tuple[list[ast.stmt], list[Path]]:
    """Statements of a config, and its bases: of `_base_`, or relative ones of `read_base()`.

    None of a base whose name has variables of mmengine in it, such as `{{ fileDirname }}`.
    """
    if file.suffix != ".py" or not file.is_file():
        return [], []
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    blocks = [node for node in nodes if isinstance(node, ast.With)]
    if not blocks:
        names = Config._get_base_files(str(file))
        return nodes, [Path(Config._get_cfg_path(name, str(file))[0]) for name in names]
    imports = [one for block in blocks for one in block.body if isinstance(one, ast.ImportFrom)]
    paths = [
        ("../" * (one.level - 1), *(one.module or "").split(".")) for one in imports if one.level
    ]
    return nodes, [file.parent.joinpath(*parts).with_suffix(".py") for parts in paths]


def _made_of(file: Path, found: set[str]) -> set[str]:
    """Names whose values a config and its bases compute from variables, which are added to them."""
    nodes, bases = _read(file)
    for base in bases:
        _made_of(base, found)
    for node in nodes:
        if _loaded(node) & found:
            found |= _assigned(node)
    return found


def _assigned(node: ast.stmt) -> set[str]:
    """Names that `a = ...`, `a.b[0] = ...` or `a.update(...)` change."""
    targets = getattr(node, "targets", [])
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        targets = [node.value.func]
    parts = [part for one in targets for part in getattr(one, "elts", [one])]
    return {re.split(r"\W", ast.unparse(part))[0] for part in parts}


def _loaded(node: ast.stmt) -> set[str]:
    """Names that a statement reads, also as `_base_.name`."""
    parts = [part for part in ast.walk(node) if isinstance(getattr(part, "ctx", 0), ast.Load)]
    names = [ast.unparse(part).removeprefix("_base_.") for part in parts]
    return {name for name in names if name.isidentifier()}


def _has(setting: Any, value: Any) -> bool:
    """Whether a setting is a value, or contains a text or the items of a dict."""
    if isinstance(setting, Mapping) and isinstance(value, Mapping):
        return all(repr(setting.get(key)) == repr(one) for key, one in value.items())
    texts = isinstance(setting, str) and isinstance(value, str)
    return value in setting if texts else repr(setting) == repr(value)
