"""Reads torch files without running anything that is in them, and says in one line what is wrong.

`weights_only=True` is the rule for every file: tensors, plain values and the few classes that
`checkpoint.training_globals` lists. No file makes more of itself than it holds. Needs torch and
numpy alone.
"""

import errno
import mmap
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

import numpy as np
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
# The end of `builtins bytearray`, spelt as the unpickler reads it: of what it may call the one that
# fills as many bytes as it is told.
_BYTEARRAY = b"\nbytearray"


def read_torch_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.load` finds in a local file; tensors stay mapped to it until they are copied.

    Raises FileNotFoundError, or ValueError where the file is damaged, holds what could run code, or
    tensors that are not plain ones in full. Checksums are compared, at some 1.4 GB/s.
    `meta['config']` is left out: mmengine's resume would run it as Python.
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
    if _names_bytearray(path):
        raise ValueError(
            f"checkpoint {path} is refused: it holds a bytearray, which no training saves, and "
            "could take any amount of memory"
        )
    with _refused_in_one_line(str(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    _check_tensors(content, path)
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)
    return content


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several parts, it says; torch writes one
        return True


def _names_bytearray(path: Path) -> bool:
    if not path.stat().st_size:  # which cannot be mapped
        return False
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(_BYTEARRAY) >= 0


def _check_tensors(content: Any, path: Path) -> None:
    """Refuses tensors and arrays that take more memory, once copied, than the file has bytes.

    Also tensors of another kind than dense ones, which code for weights does not expect.
    """
    size, held = path.stat().st_size, 0
    seen: set[int] = set()  # addresses
    left = [("content", content)]
    while left:
        name, value = left.pop()
        claimed, address = 0, id(value)
        if isinstance(value, torch.Tensor):
            plain = type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_nested
            if not plain or value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise ValueError(f"checkpoint {path}: {name!r:.80} is no dense tensor of numbers")
            storage = value.untyped_storage()
            address, claimed = storage.data_ptr(), storage.nbytes()
        elif isinstance(value, (np.ndarray, np.generic)):
            claimed = value.nbytes
        elif address not in seen:
            left.extend(_inside(name, value))
        held += 0 if address in seen else claimed
        seen.add(address)
        if held > size or isinstance(value, torch.Tensor) and value.nbytes > claimed:
            raise ValueError(
                f"checkpoint {path}: {name!r:.80} claims more numbers than the file holds"
            )


def _inside(name: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container, or an object such as a log buffer, holds, with names for messages."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from ((name, item) for item in value)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):  # not that of a class
        yield from attributes.items()


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
def _refused_in_one_line(source: str) -> Iterator[None]:
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
