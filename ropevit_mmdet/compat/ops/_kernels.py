"""What the implementations share: torchvision's operators, the dtype to compute in, one error."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NoReturn

import torch


def torchvision_ops() -> Any:
    """`torch.ops.torchvision`; the first call imports torchvision, which takes half a second."""
    if "torchvision" not in sys.modules:
        with ThreadPoolExecutor(1) as thread:  # which torch.jit.trace does not see: it would fail
            thread.submit(import_module, "torchvision").result()
    return torch.ops.torchvision


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64, else float32: half precision moves boxes by pixels."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unsupported(op: str) -> Callable[..., NoReturn]:
    """Returns a function that raises NotImplementedError with the op's name and the fix."""

    def raise_unsupported(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op '{op}' has no fallback: use a model without it, or a compiled mmcv 2.1.0"
        )

    return raise_unsupported
