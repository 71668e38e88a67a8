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

Place = tuple[str | int, ...]  # keys and indices that lead to a setting


def ineffective_variables(file: Path, settings: Set[str]) -> Iterator[str]:
    """Messages about top-level names, other than `settings`, of a config file and of its bases.

    A name is reported if a base uses it with another value, and the file neither uses it nor
    overrides any setting that the base made of it.
    """
    tree, bases = _read(file)
    for base in bases if ".mim" not in file.parts else ():  # users cannot edit a package's
        yield from ineffective_variables(base, settings)
        nodes = list(_statements(base))
        used = {name: _made_of(nodes, name) & settings for name in _unused(tree) - settings}
        if not any(used.values()):
            continue
        before, after = (Config.fromfile(one, import_custom_modules=False) for one in (base, file))
        for name, keys in used.items():
            old = before.get(name)
            places = [place for key in sorted(keys) for place in _places(before[key], old, (key,))]
            places = places or [(key,) for key in sorted(keys)]  # computed from the variable
            unchanged = all(repr(_at(before, one)) == repr(_at(after, one)) for one in places)
            if keys and unchanged and repr(old) != repr(after.get(name)):
                listed = " and ".join(".".join(map(str, one)) for one in places[:3])
                yield f"{name} of {file} has no effect: {base} has already used it; set {listed}"


def _read(file: Path) -> tuple[ast.Module, list[Path]]:
    """A config, and its bases: of `_base_`, or imported by relative paths under `read_base()`."""
    if file.suffix != ".py":
        return ast.Module([], []), []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.With)]
    if not blocks:
        names = Config._get_base_files(str(file))
        return tree, [Path(Config._get_cfg_path(name, str(file))[0]) for name in names]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    bases = [
        file.parent.joinpath(*[".."] * (node.level - 1), *(node.module or "").split("."))
        for node in imports
        if node.level
    ]
    return tree, [base.with_suffix(".py") for base in bases]


def _statements(file: Path) -> Iterator[ast.stmt]:
    """The top-level statements of a config and of its bases."""
    tree, bases = _read(file)
    yield from tree.body
    for base in bases:
        yield from _statements(base)


def _unused(tree: ast.Module) -> set[str]:
    """Names that a file assigns and uses at most to change their own value."""
    loaded = [_loaded(node) - _assigned(node) for node in tree.body]
    return set().union(*map(_assigned, tree.body)).difference(*loaded)


def _made_of(nodes: list[ast.stmt], name: str) -> set[str]:
    """Names whose values are computed from a variable, directly or by other variables."""
    found, size = {name}, 0
    while size < len(found):
        size = len(found)
        found |= {one for node in nodes if _loaded(node) & found for one in _assigned(node)}
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


def _places(settings: Any, value: Any, place: Place) -> Iterator[Place]:
    """Where settings, below `place`, are a value, or contain a text or the items of a dict."""
    if isinstance(settings, Mapping) and isinstance(value, Mapping):
        found = all(repr(settings.get(key)) == repr(one) for key, one in value.items())
    elif isinstance(settings, str) and isinstance(value, str):
        found = value in settings
    else:
        found = repr(settings) == repr(value)
    if found:
        yield place
        return
    items = enumerate(settings) if isinstance(settings, (list, tuple)) else ()
    for key, inner in settings.items() if isinstance(settings, Mapping) else items:
        yield from _places(inner, value, (*place, key))


def _at(config: Any, place: Place) -> Any:
    for key in place:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return None
    return config
