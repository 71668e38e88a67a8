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

# The machine's fault, not the file's: a device that is not there, memory that is full.
# (Of a sound file on a CPU nothing is allocated.)
_MACHINE = re.compile(r"(?!.*alloc_cpu).*(?:CUDA|HIP|XPU|MPS|device|memory)", re.I | re.S)
_OTHER_KIND = re.compile(r"TorchScript|legacy \.tar")
# What torch's unpickler and tensors raise on a pickle that makes no sense.
_SENSELESS = (
    *(EOFError, struct.error, LookupError, TypeError, AttributeError, AssertionError),
    *(ValueError, OverflowError, RecursionError, MemoryError),
)
MB = 2**20  # bytes
# Operand 149 opens a pickle of protocol 4, which no torch.save writes.
_BLOCKED = re.compile(r"GLOBAL \S+|unrecognized function .+|but got .+|operand 149")


def read_torch_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.load` finds in a local file; tensors stay mapped to it until they are copied.

    Raises FileNotFoundError, or ValueError where the file is damaged or holds what could run code.
    Checksums are compared, at some 1.4 GB/s.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":  # which newer torch reads, going by the name
        raise ValueError(
            f"checkpoint {path} is a safetensors file, for weights of a backbone alone, and a file "
            "of torch.save is needed here; to train a detector from it, set "
            f"model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{path}')"
        )
    mapped = _is_archive(path)  # torch's format since 1.6; older ones cannot be
    if mapped and not archive_is_whole(path):
        raise ValueError(_damaged(str(path)))
    with one_line_errors(str(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several parts, it says; torch writes one
        return True


def archive_is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file of torch's zip format has its directory and the right checksums.

    Nothing in it may be compressed, as torch writes it: no file takes more memory than its size. An
    entry without a checksum (`torch.serialization.set_crc32_options(False)`) passes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return False
            if sum(entry.file_size for entry in entries) > os.path.getsize(path):
                return False
            for entry in entries:
                with archive.open(entry) as file:
                    while entry.CRC and file.read(MB):
                        pass
    except (zipfile.BadZipFile, OSError, RuntimeError, *_SENSELESS):  # of an encrypted one, too
        return False
    return True


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turns torch's pages on refused or damaged files into one line each."""
    damaged = _damaged(source)
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
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek before the start: what is left of a cut archive
            raise
        raise ValueError(damaged) from error
    except RuntimeError as error:
        if _OTHER_KIND.search(str(error)):
            raise ValueError(
                f"checkpoint {source} is a TorchScript archive or of a torch before 0.4, and could "
                "run code: save its state_dict alone once and load that"
            ) from error
        if isinstance(error, RecursionError) or not _MACHINE.match(str(error)):
            raise ValueError(damaged) from error
        raise
    except _SENSELESS as error:
        raise ValueError(damaged) from error


def _damaged(source: str) -> str:
    return f"checkpoint {source} is truncated or not a torch file: save or download it again"
