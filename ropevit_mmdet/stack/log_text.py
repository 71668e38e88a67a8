"""What logs and checkpoints say of the machine: paths as seen from the run's place, no secrets.

mmengine writes the absolute path of the work dir into every log and checkpoint, and URLs of a
config with the signature that opens them. What `export.redaction` takes out of files to give away
goes further; here a run must still be understood.
"""

import os
import re
import sys
from logging import LogRecord

from mmengine.logging.logger import MMFormatter

_PASSWORD = re.compile(r"(?<=://)[^\s/'\"@]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s'\"?]+)\?[^\s'\"]*", re.IGNORECASE)
_format = MMFormatter.format


def install() -> None:
    """Have mmengine's loggers, in files and on the screen, use `seen_from_here`. Idempotent."""
    MMFormatter.format = _format_here


def seen_from_here(text: str) -> str:
    """The text with `.` for the working folder, `~` for home, `<python>` for the environment.

    Of URLs, passwords and queries are left out. Paths elsewhere stay.
    """
    places = {os.getcwd(): ".", os.path.expanduser("~"): "~", sys.prefix: "<python>"}
    for folder in sorted(filter(lambda place: len(place) > 1, places), key=len, reverse=True):
        # Neither within a longer path nor of a folder that only begins like this one.
        text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", places[folder], text)
    return without_secrets(text)


def without_secrets(text: str) -> str:
    """The text with every URL in it without its password and its query, which may sign it."""
    return _QUERY.sub(r"\1", _PASSWORD.sub("", text))


def _format_here(self: MMFormatter, record: LogRecord) -> str:
    return seen_from_here(_format(self, record))
