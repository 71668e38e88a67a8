"""`UserError`, and the context manager in which commands print it as one line."""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# Errors of mmcv, PyTorch and the system that users meet: type, pattern in the text, message.
_TRANSLATIONS = (
    (AssertionError, r"failed to load image: (.*\S)",
     "image {} cannot be read: truncated or not an image"),
    (RuntimeError, r"DataLoader worker \(pid\D*([\d, ]+)\) (?:is killed|exited)",
     "data loader worker {} was killed, probably because memory ran out: reduce num_workers or "
     "batch_size"),
    (ValueError, r"loaded state dict .*parameter group",
     "the checkpoint's optimizer has other parameter groups than the config's: resume with the "
     "config of the checkpoint, or use only its weights: load_from without resume"),
    (OSError, r"(\[Errno (?:27|28|122)\] .*)", "{}"),  # the disk is full
    (ImportError, r"(missing .*: pip install .*|--format aotinductor needs .*)", "{}"),
    (RuntimeError, r"(the exported \w+ differs from PyTorch: .*|the \w+ file is not written.*)",
     "{}"),
)  # fmt: skip
# What mmengine, which builds the objects of a config, and Python say of wrong types and arguments.
_WRONG_SETTING = re.compile(
    r"\S+ is not in the [\w: -]+ registry|`cfg` .+ must contain the key \"type\".*"
    r"|.*__init__\(\) (got an unexpected keyword|missing \d+ required).+"
)
# The config in a checkpoint runs no code, and so imports nothing.
_NOT_IMPORTED = ": is its name right, and its module in custom_imports of a CONFIG that you pass?"


class UserError(ValueError):
    """An error in what the user named: a config, module, type, file or option.

    Commands print it as one line; every other exception keeps its traceback.
    """


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints errors that have a `user_message` as one line and exits with status 2.

    With `ROPEVIT_DEBUG=1` in the environment all keep their traceback. In a distributed run,
    processes other than the first print only after the group was initialized, and not if the error
    has a true attribute `of_all_processes`.
    """
    try:
        yield
    except Exception as error:
        message = user_message(_cause(error))
        if message is None or os.environ.get("ROPEVIT_DEBUG") == "1":
            raise
        from torch import distributed

        if (rank := os.environ.get("RANK", "0")) == "0":
            sys.stderr.write(f"error: {message}\n")
        elif distributed.is_initialized() and not getattr(error, "of_all_processes", False):
            sys.stderr.write(f"error: process {rank}: {message}\n")
        raise SystemExit(2) from error


def user_message(error: BaseException) -> str | None:
    """Returns the line to print for an exception, or None if its traceback is needed."""
    text = str(error).strip()
    if isinstance(error, UserError):
        if re.match(r"Caught \w+ in \w+ worker process \d+\.\n", text):  # with its traceback
            return text.splitlines()[-1].partition("UserError: ")[2]
        return text
    for error_type, pattern, message in _TRANSLATIONS:
        matches = list(re.finditer(pattern, text))
        if isinstance(error, error_type) and matches:  # the last: tracebacks of workers have code
            return message.format(*matches[-1].groups())
    return _wrong_setting(error)


def _wrong_setting(error: BaseException) -> str | None:
    """The line for a type that is not registered, or an argument that its class does not have.

    mmengine's registry or a constructor that it calls raises the error, nothing further inside.
    """
    functions = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    builds = [os.path.basename(one.co_filename) == "build_functions.py" for one in functions]
    match = _WRONG_SETTING.match(str(error.args[0])) if any(builds) and error.args else None
    if not match or not (builds[-1] or functions[-1].co_name == "__init__"):
        return None
    return match[0] + _NOT_IMPORTED * match[0].endswith(" registry")


def _cause(error: Exception) -> Exception:
    """A killed data loader worker, which may first show as a broken connection, or the error."""
    if isinstance(error, (ConnectionError, EOFError)):
        try:
            time.sleep(1)  # meanwhile PyTorch's signal handler raises the cause
        except RuntimeError as cause:
            return cause
    return error
