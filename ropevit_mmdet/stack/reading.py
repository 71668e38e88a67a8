"""Reads torch files without running anything that is in them, and says in one line what is wrong.

`weights_only=True` is the rule for every file: tensors, plain values and the few classes that
`checkpoint.training_globals` lists. Needs torch alone.
"""

import errno
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_DAMAGE = re.compile(r"PytorchStreamReader|unexpected EOF|corrupted|Invalid magic number")
# Operand 149 opens a pickle of protocol 4, which no torch.save writes.
_BLOCKED = re.compile(r"GLOBAL \S+|unrecognized function .+|but got .+|operand 149")


def read_torch_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.load` finds in a local file; tensors stay mapped to it until they are copied.

    Raises FileNotFoundError, or ValueError where the file is damaged or holds what could run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    mapped = zipfile.is_zipfile(path)  # torch's format since 1.6; older ones cannot be
    with one_line_errors(str(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turns torch's pages on refused or damaged files into one line each."""
    damaged = f"checkpoint {source} is truncated or not a torch file: save or download it again"
    try:
        yield
    except pickle.UnpicklingError as error:
        blocked = _BLOCKED.search(str(error))
        if blocked is None:
            raise ValueError(damaged) from error
        raise ValueError(
            f"checkpoint {source} is refused: it holds more than weights and plain data "
            f"({blocked.group(0)}) and could run code, none of which was run; if you trust its "
            "author, save its state_dict alone once and load that"
        ) from error
    except (EOFError, struct.error) as error:
        raise ValueError(damaged) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek before the start: what is left of a cut archive
            raise
        raise ValueError(damaged) from error
    except RuntimeError as error:
        if not _DAMAGE.search(str(error)):
            raise  # a device that is not there, memory that is full
        raise ValueError(damaged) from error
