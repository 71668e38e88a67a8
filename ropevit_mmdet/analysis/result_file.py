"""Reads what `tools/test.py --out RESULT.pkl` wrote, without running anything that is in it."""

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PictureResult:
    """What was found in a picture, by its id in the annotations: N boxes (x1, y1, x2, y2)."""

    image_id: int
    boxes: np.ndarray  # [N, 4], pixels
    labels: np.ndarray  # [N]
    scores: np.ndarray  # [N]


def read_results(path: str | os.PathLike[str]) -> list[PictureResult]:
    """The boxes of all pictures; raises ValueError for a file of another kind or cut short."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"result file {path} does not exist; tools/test.py --out writes one")
    pickled = path.read_bytes()
    try:
        _check_claims(pickled)
        content = _TensorUnpickler(io.BytesIO(pickled)).load()
    except _RefusedError as error:
        raise ValueError(f"result file {path} is refused: {error}") from error
    except _DAMAGE as error:
        raise ValueError(f"result file {path} is cut short or no pickle") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"result file {path} holds no list of pictures, as test.py --out writes")
    return [_picture(path, entry) for entry in content]


def _picture(path: Path, entry: Any) -> PictureResult:
    try:
        found = entry["pred_instances"]
        boxes, labels, scores = (
            np.asarray(found[key], dtype) for key, dtype in
            (("bboxes", np.float64), ("labels", np.int64), ("scores", np.float64))
        )  # fmt: skip
        return PictureResult(int(entry["img_id"]), boxes.reshape(-1, 4), labels, scores)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"result file {path} holds no boxes of pictures: {error!r}") from error


class _RefusedError(Exception):
    """More in the file than there may be."""


# What pickle raises on bytes that are none of its own.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(OverflowError, MemoryError, RecursionError, RuntimeError, AssertionError),
)


def _check_claims(pickled: bytes) -> None:
    """Refuses a pickle that would take more memory than its bytes: the C unpickler believes it.

    Lengths are compared with what follows by pickletools; a place in the memo is one of a table
    that is made as long as the highest place needs.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name.endswith("PUT") and argument > len(pickled):
            raise pickle.UnpicklingError(f"place {argument} of a memo")


class _TensorUnpickler(pickle.Unpickler):
    """Knows what tensors and numpy values are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PARTS:
            return _PARTS[module, name]
        raise _RefusedError(
            f"it holds {module}.{name}, more than tensors and plain data, and could run code"
        )


def _storage(content: bytes) -> Any:
    """What `torch.storage._load_from_bytes` does, which trusts its bytes."""
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _RefusedError("it holds a damaged tensor, or one that could run code") from error


def _bytes(text: str, encoding: str) -> bytes:
    """How old protocols write bytes; they name no other encoding."""
    if encoding != "latin1":
        raise _RefusedError(f"it holds text as {encoding}")
    return text.encode(encoding)


_ARRAY, _SCALAR = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))
_PARTS = {
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
} | {
    (f"numpy.{core}.multiarray", name): part
    for core in ("core", "_core")  # of numpy 1 and 2
    for name, part in (("_reconstruct", _ARRAY), ("scalar", _SCALAR))
}
