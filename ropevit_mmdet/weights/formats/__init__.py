"""Readers of checkpoint formats, one module each.

A reader has `matches(weights)` and `read(weights, metadata)`, which returns the fields of a
`Checkpoint`. To add a format, add a module with its table of keys and list it in `FORMATS`.
"""

from ropevit_mmdet.weights.formats import birder, meta, mmengine, timm, transformers

FORMATS = (birder, timm, transformers, meta, mmengine)  # the first that matches reads the file

__all__ = ["FORMATS", "birder", "meta", "mmengine", "timm", "transformers"]
