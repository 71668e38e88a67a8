"""Memory that was freed and that the C library keeps: given back to the system when asked to."""

import ctypes
from collections.abc import Callable


def give_back_memory() -> None:
    """Have the allocator return the pages that hold nothing. Without glibc nothing is done.

    Tensors that come and go in ever other sizes leave holes, and a checkpoint, which is put
    together in memory, a large one: a long run would hold more and more of them (malloc_trim(3)).
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
