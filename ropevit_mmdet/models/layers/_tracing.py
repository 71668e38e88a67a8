"""Whether PyTorch runs operators on plain tensors, or records or transforms them."""

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_traced() -> bool:
    """Whether a graph is recorded, `torch.func` transforms, or a dispatch mode (fake tensors, FLOP
    counters) is active: values may be missing, and results must not be kept.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or is_in_torch_dispatch_mode()
    )
