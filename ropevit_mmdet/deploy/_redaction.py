"""Removes absolute paths and secrets from the metadata of files that are given away."""

import re
from collections.abc import Mapping
from typing import Any

SECRET = "<secret>"
SECRETS = "keys, tokens and passwords"  # replaces their old values in the list of changes
_NAME = (
    r"[\w-]*(?:(?:access|api|secret|private)[_-]?keys?|secrets?|tokens?|passwords?|passwd|pwd|"
    r"passphrase|credentials?|authorization)(?:_id)?"
)
_LITERAL = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\""""
_ASSIGNED = re.compile(rf"""(\b{_NAME}['"]?\s*[=:]\s*)({_LITERAL})""", re.IGNORECASE)
_ABSOLUTE = re.compile(r"file:/|~\w*/|/(?=.)|[A-Za-z]:[\\/]|\\\\")
_OPTION = re.compile(r"(?<=[\s=:,;])/(?:[\w.@+-]+/)+[\w.@+-]*")  # --out=/home/me/run
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/?\s]*@)?([^?\s]*)(?:\?\S*)?", re.IGNORECASE)


def redact(value: Any) -> tuple[Any, dict[str, str]]:
    """Returns plain data without paths and secrets, and old text -> new text of every change.

    Of an absolute path the last part stays. A string of several lines counts as Python source.
    """
    changes: dict[str, str] = {}
    return _redact(value, changes), changes


def _redact(value: Any, changes: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _redact(key, changes): _hide(item, changes)
            if re.fullmatch(_NAME, str(key), re.IGNORECASE)
            else _redact(item, changes)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = (_redact(item, changes) for item in value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    if hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    if "\n" not in text:
        return _redact_string(text, changes)
    text = _ASSIGNED.sub(lambda match: match[1] + repr(_hide(match[2], changes)), text)
    return re.sub(
        _LITERAL,
        lambda match: match[0][0] + _redact_string(match[0][1:-1], changes) + match[0][-1],
        text,
    )


def _hide(value: Any, changes: dict[str, str]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_hide(item, changes) for item in value)
    if not isinstance(value, str):
        return _redact(value, changes)
    changes[SECRETS] = SECRET
    return SECRET


def _redact_string(text: str, changes: dict[str, str]) -> str:
    if _ABSOLUTE.match(text):
        new = _last_part(text)
    else:
        new = _OPTION.sub(lambda match: _last_part(match[0]), _URL.sub(r"\1\2", text))
    if new != text:
        changes[text] = new
    return new


def _last_part(path: str) -> str:
    """`coco/` of `/home/anna/coco/`: a directory keeps its slash, since code joins names to it."""
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    return parts[-1] + "/" * path.endswith(("/", "\\")) if parts else ""
