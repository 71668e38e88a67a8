"""What logs and checkpoints say of the machine: no absolute path, no secret.

mmengine writes the absolute path of the work dir into every log and checkpoint, beside the whole
config with its data directories, keys and URLs with the signature that opens them. The config that it
dumps into the work dir is the one exception: it is as the user gave it, to be run again.
"""

import os
import re
import sys
from logging import LogRecord
from typing import Any

from mmengine.config import Config
from mmengine.logging.logger import MMFormatter
from mmengine.visualization import Visualizer

SECRET = "<secret>"
_PASSWORD = re.compile(r"(?<=://)[^\s/'\"@]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s'\"?]+)\?[^\s'\"]*", re.IGNORECASE)
_SECRET_NAME = (
    r"[\w-]*(?:(?:access|api|secret|private)[_-]?keys?|secrets?|tokens?|passwords?|passwd|pwd|"
    r"passphrase|credentials?|authorization)(?:_id)?"
)
_SECRET_KEY = re.compile(_SECRET_NAME, re.IGNORECASE)
_SECRET_VALUE = re.compile(
    rf"""(\b{_SECRET_NAME}['"]?\s*[=:]\s*)('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
# Quoted and bare; neither the rest of a relative one or a URL, nor a quotient.
_QUOTED_PATH = re.compile(r"""'(?:file:/)?/(?:[^'\\\n]|\\.)+'|"(?:file:/)?/(?:[^"\\\n]|\\.)+\"""")
_PATH = re.compile(
    r"(?:(?<=file://)|(?<![\w./~<>)\]}-]))/(?:[^\s/'\"<>()\[\]{},;:]+/[^\s'\"<>,;:)\]}]*|"
    r"[^\s/'\"<>()\[\]{},;:]{2,})"
)
_format, _add_config = MMFormatter.format, Visualizer.add_config


def install() -> None:
    """Have mmengine's loggers, in files and on the screen, and its visualizers, which keep the
    config beside the numbers, use `seen_from_here`. Idempotent.
    """
    MMFormatter.format = _format_here
    Visualizer.add_config = _add_config_here


def seen_from_here(text: str) -> str:
    """The text with `.` for the working directory, `~` for home, `<python>` for the environment, and
    of paths elsewhere only the last part, `.../instances_val.json`.

    Of URLs, passwords and queries are left out, and what is quoted behind `api_key=` and the like.
    """
    places = {os.getcwd(): ".", os.path.expanduser("~"): "~", sys.prefix: "<python>"}
    for directory in sorted(filter(lambda place: len(place) > 1, places), key=len, reverse=True):
        # Neither within a longer path nor of a directory that only begins like this one.
        text = re.sub(rf"(?<![\w.-]){re.escape(directory)}(?![\w.-])", places[directory], text)
    text = _QUOTED_PATH.sub(lambda found: found[0][0] + _end(found[0][1:]), text)
    return without_secrets(_PATH.sub(lambda found: _end(found[0]), text))


def config_from_here(config: Config) -> Config:
    """The config with every text in it as `seen_from_here` has it."""
    return Config(_values_from_here(config.to_dict()))


def without_secrets(text: str) -> str:
    """The text `without_keys`, and every URL in it without its password and its query, which may
    sign it.
    """
    return _QUERY.sub(r"\1", _PASSWORD.sub("", without_keys(text)))


def without_keys(text: str) -> str:
    """The text with `<secret>` for quoted values of keys, tokens and passwords."""
    text = _BEARER.sub(rf"\1{SECRET}", text)
    return _SECRET_VALUE.sub(lambda found: found[1] + repr(SECRET), text)


def hidden(value: Any) -> Any:
    """`<secret>` for a text, and for each of a list of texts; numbers and all else stay."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(hidden, value))
    return SECRET if isinstance(value, str) else value


def is_secret(key: Any) -> bool:
    """Whether what a config has under this name is not for others: `api_key`, `token` ..."""
    return isinstance(key, str) and _SECRET_KEY.fullmatch(key) is not None


def _values_from_here(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _values_from_here(hidden(item) if is_secret(key) else item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_values_from_here(item) for item in value)
    if not isinstance(value, str):
        return value
    return seen_from_here(f"'{value}'")[1:-1]


def _end(path: str) -> str:
    """`.../coco/` of `/data/coco/`: a directory keeps its slash. A closing quote counts as text."""
    quote = path[-1] if path[-1] in "'\"" else ""
    whole = path.removesuffix(quote) if quote else path
    last = whole.rstrip("/").rpartition("/")[2]
    return f".../{last}{'/' * whole.endswith('/')}{quote}" if last else path


def _format_here(self: MMFormatter, record: LogRecord) -> str:
    return seen_from_here(_format(self, record))


def _add_config_here(self: Visualizer, config: Config, **kwargs) -> None:
    _add_config(self, config_from_here(config), **kwargs)
