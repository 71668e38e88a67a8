"""Stand-ins for what pickles of numpy values call, which make plain numbers and nothing else.

numpy's own trust a pickle: its arrays and dtypes can be told to take some bytes for the addresses
of objects, which then need only be looked at. Format: `numpy.ndarray.__reduce__`,
`numpy.dtype.__reduce__`, numpy 1 and 2.
"""

import pickle
import re
from typing import Any

import numpy as np

# What a pickle says of bool, integers, floating point and complex numbers, and of nothing else.
_CODE = re.compile(r"[biufc]\d\d?")
# Version, byte order; numbers have no subarray, names, fields, sizes of their own, or flags.
_STATES = [(3, order, None, None, None, -1, -1, 0) for order in "<>|="]
_ARRAY, _SCALAR = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))


class NotPlainError(pickle.UnpicklingError):
    """A numpy value that is no plain number, or not pickled as numpy does it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"GLOBAL {name} of more than plain numbers")


class PlainDtype:
    """Stands for `numpy.dtype`: first the code, then the order of the bytes."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise NotPlainError("numpy.dtype")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state not in _STATES:
            raise NotPlainError("numpy.dtype")
        self.dtype = self.dtype.newbyteorder(state[1])

    @classmethod
    def scalar(cls, dtype: Any, content: bytes) -> np.generic:
        """Stands for `numpy.core.multiarray.scalar`: one number of a stand-in's dtype."""
        if not isinstance(dtype, cls):
            raise NotPlainError("numpy.dtype")
        return _SCALAR(dtype.dtype, content)


class PlainArray(np.ndarray):
    """Stands for `numpy.ndarray`, and is one; what is made of it, or it pickled, is numpy's own."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "PlainArray":
        raise NotPlainError("numpy.ndarray")

    @classmethod
    def empty(cls, kind: type, shape: tuple[int, ...], _: bytes) -> "PlainArray":
        """Stands for `numpy.core.multiarray._reconstruct`: no numbers, until they are set."""
        if kind is not cls or shape != (0,):
            raise NotPlainError("numpy.ndarray")
        return _ARRAY(cls, (0,), b"b")

    def __setstate__(self, state: Any) -> None:
        """Takes shape and content, which numpy compares; once, as a tensor may share them."""
        version, shape, dtype, by_column, content = state
        if not isinstance(dtype, PlainDtype) or self.shape != (0,):
            raise NotPlainError("numpy.ndarray")
        super().__setstate__((version, shape, dtype.dtype, by_column, content))

    def __reduce__(self) -> tuple:
        return self.view(np.ndarray).__reduce__()

    def __array_wrap__(
        self, made: np.ndarray, context: Any = None, return_scalar: bool = False
    ) -> Any:
        return made.view(np.ndarray)[()]


def numpy_values() -> dict[str, Any]:
    """What pickles of numpy 1 and 2 name -> what stands for it.

    Functions are bound methods: a pickle could set the defaults of others.
    """
    values = {"numpy.ndarray": PlainArray, "numpy.dtype": PlainDtype}
    for core in ("core", "_core"):
        values[f"numpy.{core}.multiarray._reconstruct"] = PlainArray.empty
        values[f"numpy.{core}.multiarray.scalar"] = PlainDtype.scalar
    return values
