"""Say what a user got wrong in one line instead of a traceback, and leave real bugs alone."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Raised by this package's own lines, these are addressed to the user; raised anywhere else they
# may be a bug and keep their traceback.
_ADDRESSED = (ValueError, OSError, ImportError, NotImplementedError)
# mmcv, on a picture that OpenCV cannot decode; the text comes through data loader workers too.
_UNREADABLE_PICTURE = re.compile(r"failed to load image: (.+)")
# torch.utils.data, around the traceback of an error in a worker process.
_FROM_WORKER = re.compile(r"Caught (\w+) in \w+ worker process \d+\.\n")
_PACKAGE = Path(__file__).parent


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that are addressed to the user into `error: ...` on stderr and exit status 2.

    Everything else passes with its traceback. With ROPEVIT_DEBUG=1 in the environment everything
    does. In a distributed run only the first process speaks.
    """
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get("ROPEVIT_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2) from error


def user_message(error: BaseException) -> str | None:
    """What to tell the user about an exception, or None if it is not addressed to them."""
    unreadable = _UNREADABLE_PICTURE.search(str(error))
    if isinstance(error, AssertionError) and unreadable:
        return f"picture {unreadable[1].strip()} cannot be read: truncated or not a picture"
    if not isinstance(error, _ADDRESSED):
        return None
    kind = _FROM_WORKER.match(str(error))
    if kind:
        before, _, message = str(error).rpartition(f"\n{kind[1]}: ")
        files = re.findall(r'^  File "(.+)", line \d+', before, re.MULTILINE)
    else:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        message = str(error)
    by_us = bool(files) and _PACKAGE in Path(files[-1]).parents
    return message.strip() if by_us else None
