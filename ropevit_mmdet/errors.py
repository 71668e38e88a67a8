"""Say what a user got wrong in one line instead of a traceback, and leave real bugs alone."""

import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

# Raised by this package's own lines, these are addressed to the user; raised anywhere else they
# may be a bug and keep their traceback.
_ADDRESSED = (ValueError, OSError, ImportError, NotImplementedError)
# mmcv, on an image that OpenCV cannot decode; the text comes through data loader workers too.
_UNREADABLE_IMAGE = re.compile(r"failed to load image: (.+)")
# torch.utils.data, around the traceback of an error in a worker process.
_FROM_WORKER = re.compile(r"Caught (\w+) in \w+ worker process \d+\.\n")
# PyTorch, where the system ends one of its processes.
_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid\D*([\d, ]+)\) (?:is killed by signal: (\w+)|exited)"
)
# torch.optim, on loading the state of an optimizer of other groups or of groups of other sizes.
_OTHER_GROUPS = re.compile(r"loaded state dict .*parameter group")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGE = Path(__file__).parent


class UserError(ValueError):
    """An error in what the user named: a config, module, type, file or option.

    Commands print it as one line, without a traceback. Raise it where such input is read; leave
    every other exception as it is.
    """


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that are addressed to the user into `error: ...` on stderr and exit status 2.

    Everything else passes with its traceback. With ROPEVIT_DEBUG=1 in the environment everything
    does. Of a distributed run the first process speaks; once they work together, the others too, of
    errors that are not marked `of_all_processes`.
    """
    try:
        yield
    except Exception as error:
        message = _message(error)
        if message is None or os.environ.get("ROPEVIT_DEBUG") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            sys.stderr.write(f"error: {message}\n")
        elif distributed.is_initialized() and not getattr(error, "of_all_processes", False):
            sys.stderr.write(f"error: process {rank}: {message}\n")
        raise SystemExit(2) from error


def _message(error: Exception) -> str | None:
    """`user_message`, also where a lost data loader worker shows first as a broken connection.

    PyTorch raises what it was in a signal handler, wherever this process is by then.
    """
    try:
        if isinstance(error, (ConnectionError, EOFError)):
            time.sleep(1)
        return user_message(error)
    except RuntimeError as lost:
        return user_message(lost)


def user_message(error: BaseException) -> str | None:
    """What to tell the user about an exception, or None if it is not addressed to them."""
    unreadable = _UNREADABLE_IMAGE.search(str(error))
    if isinstance(error, AssertionError) and unreadable:
        return f"image {unreadable[1].strip()} cannot be read: truncated or not an image"
    lost = _LOST_WORKER.search(str(error))
    if isinstance(error, RuntimeError) and lost:
        return (
            f"data loader worker {lost[1]} was ended by {lost[2] or 'the system'}: mostly memory "
            "ran out; try fewer num_workers or a smaller batch_size. --resume continues from the last"
            " checkpoint"
        )
    if isinstance(error, ValueError) and _OTHER_GROUPS.search(str(error)):
        return (
            "the checkpoint's optimizer has other parameter groups than the config's, as of "
            "another frozen_stages or paramwise_cfg: resume with the config that it was saved "
            "with, or start from its weights alone, with load_from and without resume"
        )
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
    if isinstance(error, OSError) and error.errno in _FULL and not by_us:
        return f"{error}: what was written before is whole"
    return message.strip() if by_us else None
