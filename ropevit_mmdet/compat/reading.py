"""Reads torch files without running anything that is in them, and says in one line what is wrong.

`weights_only=True` is the rule for every file: tensors, plain values and the few classes that
`checkpoint.training_globals` lists. What a file makes of its pickle has a limit by the pickle's
bytes (see `pickle_weight`), and no tensor or array takes more memory than the file has bytes. Needs
torch and numpy alone.
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
from typing import Any, BinaryIO

import numpy as np
import torch

from ropevit_mmdet.compat.pickle_weight import FREE, TooMuchError, check_weight

# The machine's fault, not the file's: a device that is not there, memory that is full.
# (Of a sound file on a CPU nothing is allocated.)
_MACHINE = re.compile(r"(?!.*alloc_cpu).*(?:CUDA|HIP|XPU|MPS|device|memory)", re.I | re.S)
# What torch's unpickler and tensors raise on a pickle that is invalid.
_SENSELESS = (
    *(EOFError, struct.error, LookupError, TypeError, AttributeError, AssertionError),
    *(ValueError, OverflowError, RecursionError, MemoryError),
)
MB = 2**20  # bytes
# Operand 149 opens a pickle of protocol 4, which no torch.save writes.
_BLOCKED = re.compile(r"GLOBAL \S+|unrecognized function .+|but got .+|operand 149|a bare pickle")
# The end of `builtins bytearray`, spelt as the unpickler reads it: of what it may call the one that
# fills as many bytes as it is told.
BYTEARRAY = b"\nbytearray"
# How files of torch before 1.6 begin: of five pickles the first, a number.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.load` finds in a local file; tensors stay mapped to it until they are copied.

    Raises FileNotFoundError, or ValueError where the file is damaged, holds what could run code, or
    tensors that are not plain ones in full. Checksums are compared, at some 1.4 GB/s.
    `meta['config']` is left out: mmengine's resume would run it as Python.
    """
    named, path = path, local_file(path)
    if path is None:
        raise FileNotFoundError(f"checkpoint {named} does not exist")
    if path.suffix == ".safetensors":  # which newer torch reads, going by the name
        raise ValueError(
            f"checkpoint {path} is a safetensors file, for weights of a backbone alone, and a file "
            "of torch.save is needed here; to train a detector from it, set "
            f"model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{path}')"
        )
    mapped = _is_archive(path)  # torch's format since 1.6; older ones cannot be
    if not path.stat().st_size or mapped and not archive_is_whole(path):
        raise ValueError(_damaged(str(path)))
    with _refused_in_one_line(str(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        _check_pickles(path, mapped)
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    _check_tensors(content, path)
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)
    return content


def local_file(path: str | os.PathLike[str]) -> Path | None:
    """The file at a path; None where there is none or can be none: names too long, no such home."""
    try:
        path = Path(path).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError):
        return None


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several parts, it says; torch writes one
        return True


def _check_pickles(path: Path, is_archive: bool) -> None:
    """Refuses what would take any amount of memory and time to load, before it is loaded."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if content.find(BYTEARRAY) >= 0:
            raise TooMuchError("it holds a bytearray, which no training saves and which")
        if is_archive:  # read as torch.load reads it
            check_weight(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
        else:
            check_legacy(content)


def check_legacy(content: BinaryIO, free: int = FREE) -> None:
    """Refuses what is not of torch's older format, or weighs too much; raises as check_weight."""
    start = content.read(len(LEGACY))
    if start.startswith(b"\x80") and not LEGACY.startswith(start):
        raise pickle.UnpicklingError("a bare pickle")
    if start != LEGACY:
        raise ValueError("not a torch file")
    content.seek(0)
    for _ in range(5):  # pickles, which the storages follow
        check_weight(content, free)


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
    except TooMuchError as error:
        raise ValueError(f"checkpoint {source} is refused: {error}") from error
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
        if "TorchScript" in str(error):
            raise ValueError(
                f"checkpoint {source} is a TorchScript archive, which could run code: save its "
                "state_dict alone once and load that"
            ) from error
        if isinstance(error, RecursionError) or not _MACHINE.match(str(error)):
            raise ValueError(damaged) from error
        raise
    except _SENSELESS as error:
        raise ValueError(damaged) from error


def _damaged(source: str) -> str:
    return f"checkpoint {source} is truncated or not a torch file: save or download it again"
