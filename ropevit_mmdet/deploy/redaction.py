"""Takes out of text what belongs to one machine: absolute paths, private hosts, passwords, keys.

For files that leave the house, such as published checkpoints, whose config says where their author
keeps data. What is common knowledge stays: relative paths, public URLs, names such as
``birder://NAME``.
"""

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from ropevit_mmdet.compat.log_text import SECRET, hidden, is_secret, without_keys

KEYS = "keys, tokens and passwords"  # stands for their old texts, which nobody is told
_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_ABSOLUTE = re.compile(r"file:/|~\w*/|/(?=.)|[A-Za-z]:[\\/]|\\\\")
_WITHIN = re.compile(r"(?<=[\s=:,;])/(?:[\w.@+-]+/)+[\w.@+-]*")  # --out=/home/me/run
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Schemes whose first part is a host or a bucket; others name a model zoo.
_HOSTED = {"http", "https", "ftp", "sftp", "ssh", "tcp", "s3", "gs", "hdfs", "petrel"}
_PRIVATE_ENDS = (".local", ".localdomain", ".internal", ".intranet", ".lan", ".corp", ".home")


def redact(value: Any) -> tuple[Any, dict[str, str]]:
    """The same plain data without what belongs to one machine, and what was changed.

    Args:
        value: strings, numbers, None, and lists, tuples and dicts of them. A string of several
            lines counts as Python source: the string literals in it are looked at one by one.

    Returns:
        The data, and old text -> new text of every string that was changed. Of a path, and of a
        URL with a private host, the last part stays. Keys and tokens are not told here either.
    """
    changes: dict[str, str] = {}
    return _redact(value, changes), changes


def _redact(value: Any, changes: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            _redact(key, changes): _redact_value(key, item, changes) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(item, changes) for item in value)
    if not isinstance(value, str):
        return value
    if "\n" not in value:
        return _redact_string(value, changes)
    text = without_keys(value)
    if text != value:
        changes[KEYS] = SECRET
    return _QUOTED.sub(lambda found: _redact_literal(found[0], changes), text)


def _redact_value(key: Any, value: Any, changes: dict[str, str]) -> Any:
    shown = hidden(value) if is_secret(key) else value
    if shown != value:
        changes[KEYS] = SECRET
    return _redact(shown, changes)


def _redact_literal(literal: str, changes: dict[str, str]) -> str:
    return literal[0] + _redact_string(literal[1:-1], changes) + literal[-1]


def _redact_string(text: str, changes: dict[str, str]) -> str:
    if _URL.match(text):
        new = _public_url(text)
    elif _ABSOLUTE.match(text):
        new = _last_part(text)
    else:
        new = _WITHIN.sub(lambda path: _last_part(path[0]), text)
    host = socket.gethostname()
    if len(host) > 3 and not host.isalpha():  # one that is a plain word may stand for that word
        new = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "localhost", new)
    if new != text:
        changes[text] = new
    return new


def _public_url(url: str) -> str:
    """The URL without password and signature, or its last part if its host is private."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in _HOSTED:
        return url
    if _is_private(parts.hostname or ""):
        return _last_part(parts.path)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="").geturl()


def _is_private(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_ENDS)
    return True


def _last_part(path: str) -> str:
    """`coco/` of `/home/anna/coco/`: a directory keeps its slash, since code joins names to it."""
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    return parts[-1] + "/" * path.endswith(("/", "\\")) if parts else ""
