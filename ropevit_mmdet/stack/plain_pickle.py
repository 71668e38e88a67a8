"""Unpickles tensors, numpy values and plain data, such as `tools/test.py --out FILE.pkl` writes.

Nothing that is in a pickle runs, and what it makes takes no more memory than its bytes.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


def unpickle(pickled: bytes, source: str, encoding: str = "ASCII") -> Any:
    """What was pickled; `encoding` is that of texts of Python 2, as in `pickle.loads`.

    Raises ValueError that names `source` for more than data, and for damage.
    """
    try:
        _check_claims(pickled)
        return _DataUnpickler(pickled, encoding).load()
    except _RefusedError as error:
        raise ValueError(f"{source} is refused: {error}") from error
    except _DAMAGE as error:
        raise ValueError(f"{source} is cut short or no pickle") from error


class _RefusedError(Exception):
    """More in the file than there may be."""


# What pickle raises on bytes that are none of its own.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(OverflowError, MemoryError, RecursionError, RuntimeError, AssertionError),
)
_NO_TENSOR = "it holds a damaged tensor, or one that could run code or take any amount of memory"
_TOO_MUCH = "its tensors or arrays claim more numbers than it holds"
_NDARRAY = "numpy.ndarray"  # stands for the class, which would make arrays of any length
_ARRAY, _SCALAR = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))


def _check_claims(pickled: bytes) -> None:
    """Refuses a pickle that would take more memory than its bytes: the C unpickler believes it.

    Lengths are compared with what follows by pickletools; a place in the memo is one of a table
    that is made as long as the highest place needs.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name.endswith("PUT") and argument > len(pickled):
            raise pickle.UnpicklingError(f"place {argument} of a memo")


class _DataUnpickler(pickle.Unpickler):
    """Knows what tensors and numpy values are made of, and nothing else.

    Functions are given out as methods: a pickle could set the defaults of plain ones.
    """

    def __init__(self, pickled: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(pickled), encoding=encoding)
        self.left = len(pickled)  # bytes that the storages of tensors may still take
        self.parts = {
            ("_codecs", "encode"): self.encode,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch.storage", "_load_from_bytes"): self.storage,
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): np.dtype,
        }
        for core in ("core", "_core"):  # of numpy 1 and 2
            self.parts[f"numpy.{core}.multiarray", "_reconstruct"] = self.array
            self.parts[f"numpy.{core}.multiarray", "scalar"] = self.scalar

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.parts:
            return self.parts[module, name]
        raise _RefusedError(
            f"it holds {module}.{name}, more than tensors and plain data, and could run code"
        )

    def encode(self, text: str, encoding: str) -> bytes:
        """How old protocols write bytes; they name no other encoding."""
        if encoding != "latin1":
            raise _RefusedError(f"it holds text as {encoding}")
        return text.encode(encoding)

    def storage(self, content: bytes) -> Any:
        """What `torch.storage._load_from_bytes` does, which trusts its bytes."""
        if content.startswith(b"PK") or b"\nbytearray" in content:  # see stack.reading
            raise _RefusedError(_NO_TENSOR)
        try:
            storage = torch.load(io.BytesIO(content), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise _RefusedError(_NO_TENSOR) from error
        self.left -= storage._untyped_storage.nbytes()
        if self.left < 0:
            raise _RefusedError(_TOO_MUCH)
        return storage

    def tensor(self, storage: Any, *layout: Any) -> torch.Tensor:
        tensor = torch._utils._rebuild_tensor_v2(storage, *layout)
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise _RefusedError(_TOO_MUCH)
        return tensor

    def array(self, kind: str, shape: tuple[int, ...], _: bytes) -> np.ndarray:
        """An empty one, which is then told shape and content, and compares them."""
        if kind != _NDARRAY or shape != (0,):
            raise _RefusedError(_TOO_MUCH)
        return _ARRAY(np.ndarray, shape, b"b")

    def scalar(self, dtype: np.dtype, content: bytes) -> np.generic:
        return _SCALAR(dtype, content)
