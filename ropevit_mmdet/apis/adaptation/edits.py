"""Edits of a config that remember their comments, and the text of the differences."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

WIDTH = 100
Path = tuple[Any, ...]  # keys and list indices from the top of a config
_MISSING = object()


class Edits:
    """A config as plain dicts and lists, what it was before, and a comment per edited entry."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.before, self.config = config, deepcopy(config)
        self.comments: dict[Path, str] = {}

    def get(self, *path: Any) -> Any:
        value: Any = self.config
        for key in path:
            value = value[key]
        return value

    def set(self, path: Path, value: Any, comment: str = "") -> None:
        """Sets an entry; a comment is written above it unless its value stays the same."""
        parent = self.get(*path[:-1])
        if isinstance(parent, list) or parent.get(path[-1], _MISSING) != value:
            parent[path[-1]] = value
            if comment:
                self.comments[path] = comment

    def text(self, merge: bool = False) -> str:
        """The edited entries as Python; `merge` in configs that inherit by `read_base`."""
        lines = []
        for key, value in difference(self.before, self.config).items():
            merged = (
                merge and isinstance(value, Mapping) and isinstance(self.before.get(key), Mapping)
            )
            name, end = (f"{key}.merge(", ")") if merged else (f"{key} = ", "")
            lines += self._entry(name, value, (key,), 0, end)
        return "\n".join(lines) + "\n"

    def _entry(self, name: str, value: Any, path: Path, indent: int, end: str) -> list[str]:
        margin = " " * indent
        comment = [f"{margin}# {self.comments[path]}"] if path in self.comments else []
        inline = f"{margin}{name}{_inline(value)}{end}"
        nested = any(len(one) > len(path) and one[: len(path)] == path for one in self.comments)
        pairs = _parts(value)
        if not pairs or (len(inline) <= WIDTH and not nested):
            return [*comment, inline]
        opening, closing = _brackets(value)
        lines = [*comment, f"{margin}{name}{opening}"]
        for key, prefix, part in pairs:
            lines += self._entry(prefix, part, (*path, key), indent + 4, ",")
        return [*lines, f"{margin}{closing}{end}"]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What to write on top of `old` to get `new`: mmengine merges dicts and replaces the rest."""
    changes: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if not isinstance(value, Mapping):
            if type(before) is not type(value) or before != value:
                changes[key] = value
        elif before is _MISSING:
            changes[key] = value
        elif not isinstance(before, Mapping) or before.keys() - value.keys():
            changes[key] = {"_delete_": True, **value}
        elif parts := difference(before, value):
            replaced = before.get("type") != value.get("type")
            changes[key] = {"_delete_": True, **value} if replaced else parts
    return changes


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All dicts in a value with their paths, outermost first."""
    if isinstance(value, dict):
        yield path, value
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, part in list(items):
        yield from walk(part, (*path, key))


def plain(number: float) -> int | float:
    """An int if the value is whole."""
    return int(number) if number == int(number) else round(number, 6)


def _parts(value: Any) -> list[tuple[Any, str, Any]]:
    """Key, its text and value of every part of a container."""
    if isinstance(value, Mapping):
        named = _is_named(value)
        return [(k, f"{k}=" if named else f"{_inline(k)}: ", part) for k, part in value.items()]
    return [(i, "", v) for i, v in enumerate(value)] if isinstance(value, (list, tuple)) else []


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return ("dict(", ")") if _is_named(value) else ("{", "}")
    return ("[", "]") if isinstance(value, list) else ("(", ")")


def _inline(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    if isinstance(value, (Mapping, list, tuple)):
        opening, closing = _brackets(value)
        parts = [prefix + _inline(part) for _, prefix, part in _parts(value)]
        comma = "," * (isinstance(value, tuple) and len(parts) == 1)
        return f"{opening}{', '.join(parts)}{comma}{closing}"
    return repr(value)


def _is_named(value: Mapping) -> bool:
    return all(
        isinstance(key, str) and key.isidentifier() and key not in _KEYWORDS for key in value
    )


_KEYWORDS = frozenset(("from", "class", "import", "lambda", "in", "is", "not", "and", "or", "if"))
