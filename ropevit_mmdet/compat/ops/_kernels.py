"""What the implementations share: torchvision's operators, dtypes, gradients, one error."""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor


def torchvision_ops() -> Any:
    """`torch.ops.torchvision`; the first call imports torchvision, which takes half a second."""
    if "torchvision" not in sys.modules:
        with ThreadPoolExecutor(1) as thread:  # which torch.jit.trace does not see: it would fail
            thread.submit(import_module, "torchvision").result()
    return torch.ops.torchvision


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64, else float32: half precision moves boxes by pixels."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fill_gradients(
    targets: Iterable[Tensor],
    function: Callable[..., Tensor],
    inputs: Iterable[Tensor],
    grad_output: Tensor,
) -> None:
    """Fills `targets` with the gradients of a function of `inputs`, which is computed again."""
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in inputs]
        grads = torch.autograd.grad(function(*leaves), leaves, grad_output)
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)


def unsupported(op: str) -> Callable[..., NoReturn]:
    """Returns a function that raises NotImplementedError with the op's name and the fix."""

    def raise_unsupported(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op '{op}' has no fallback: use a model without it, or a compiled mmcv 2.1.0"
        )

    return raise_unsupported
