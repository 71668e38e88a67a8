"""oneDNN's caches on a CPU, bounded to what a detector needs, so that long runs do not creep.

For every new size of map and number of regions oneDNN makes a primitive, machine code included, and
keeps 1,024 of them; PyTorch's layer on top, ideep, keeps as many descriptions. What is kept lies
between tensors that are freed, and holes grow around it (pytorch/pytorch#98688; oneDNN developer
guide, "Primitive Cache").
"""

import os

CAPACITY = 128  # one step of FCOS on a RoPE ViT needs 105, of Mask R-CNN 77
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_caches(capacity: int = CAPACITY) -> None:
    """Bound both caches of this process, unless its environment or an earlier call has.

    They ask for it once, at the first convolution on a CPU: later calls have no effect.
    """
    for name in VARIABLES:
        os.environ.setdefault(name, str(capacity))
