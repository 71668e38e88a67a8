"""Readers of checkpoint formats, one module each.

A reader has `matches(weights)` and `read(weights, metadata)`, which returns the fields of a
`Checkpoint`. To add a format, add a module with its table of keys and list it in `FORMATS`.
"""

import re
from collections.abc import Iterable
from types import ModuleType

from ropevit_mmdet.weights.formats import birder, meta, mmengine, timm, transformers

FORMATS = (birder, timm, transformers, meta, mmengine)  # the first that matches reads the file
_FIRST_BLOCK = re.compile(  # of every format; before it, where the ViT is in a larger model
    r"((?:.*?\.)??)(?:encoder\.block|blocks|(?:model\.)?layer|transformer\.resblocks)"
    r"\.0\.(?:norm1|ln_1)\.weight"
)


def find_vits(names: Iterable[str]) -> list[tuple[str, ModuleType]]:
    """The prefix of every RoPE ViT among the names of weights, and the reader of its format."""
    found, names = [], list(names)
    for prefix in dict.fromkeys(match[1] for match in map(_FIRST_BLOCK.fullmatch, names) if match):
        below = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        found += [(prefix, reader) for reader in FORMATS if reader.matches(below)][:1]
    return found
