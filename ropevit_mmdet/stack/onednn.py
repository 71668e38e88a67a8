"""Bounds what oneDNN, which computes torch's convolutions on a CPU, keeps of sizes it has seen.

It keeps 1024 primitives, some with megabytes of memory of their own, and makes new ones for every
size. The number of regions that a mask head gets is another one in nearly every iteration: memory
grows for hours. Source: oneDNN's developer guide, "Primitive Cache".
"""

import os

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
PRIMITIVES = 256  # a detector's convolutions, forward and backward, with room for a few sizes


def bound_primitive_cache() -> None:
    """Set the capacity, before the first convolution, unless the environment has one."""
    os.environ.setdefault(CAPACITY, str(PRIMITIVES))
