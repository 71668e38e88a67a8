"""Unpickles tensors, numpy values and plain data, such as `tools/test.py --out FILE.pkl` writes.

Nothing that is in a pickle runs, and what it makes has a limit by its bytes: see pickle_weight.
"""

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch

from ropevit_mmdet.compat.numpy_values import NotPlainError, numpy_values
from ropevit_mmdet.compat.pickle_weight import TooMuchError, check_weight
from ropevit_mmdet.compat.reading import BYTEARRAY, check_legacy


def unpickle(pickled: bytes, source: str, encoding: str = "ASCII") -> Any:
    """What was pickled; `encoding` is that of texts of Python 2, as in `pickle.loads`.

    Raises ValueError that names `source` for more than data, and for damage.
    """
    try:
        check_weight(pickled)
        return _DataUnpickler(pickled, encoding).load()
    except (_RefusedError, TooMuchError) as error:
        raise ValueError(f"{source} is refused: {error}") from error
    except NotPlainError as error:
        raise ValueError(f"{source} is refused: {_NO_NUMBERS}") from error
    except _DAMAGE as error:
        raise ValueError(f"{source} is truncated or no pickle") from error


class _RefusedError(Exception):
    """More in the file than there may be."""


# What pickle raises on bytes that are none of its own.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(OverflowError, MemoryError, RecursionError, RuntimeError, AssertionError),
)
_NO_TENSOR = "it holds a damaged tensor, or one that could run code or take any amount of memory"
_TOO_MUCH = "its tensors or arrays claim more numbers than it holds"
_NO_NUMBERS = "it holds numpy values of another kind than plain numbers"


class _DataUnpickler(pickle.Unpickler):
    """Knows what tensors and numpy values are made of, and nothing else.

    Functions are given out as methods: a pickle could set the defaults of plain ones.
    """

    def __init__(self, pickled: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(pickled), encoding=encoding)
        self.left = len(pickled)  # bytes that the storages of tensors may still take
        self.parts = {
            "_codecs.encode": self.encode,
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch.storage._load_from_bytes": self.storage,
            **numpy_values(),
        }

    def find_class(self, module: str, name: str) -> Any:
        if "." not in name and f"{module}.{name}" in self.parts:
            return self.parts[f"{module}.{name}"]
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
        if BYTEARRAY in content:
            raise _RefusedError(_NO_TENSOR)
        try:
            check_legacy(io.BytesIO(content), free=len(content))
            storage = torch.load(io.BytesIO(content), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
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
