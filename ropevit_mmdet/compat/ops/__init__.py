"""Fallback for `mmcv._ext`, the compiled part of mmcv 2.x, on operators of torch and torchvision.

mmcv-lite contains every `mmcv/ops/*.py` and lacks only this module. Signatures and in-place output
arguments are those that `mmcv/ops/*.py` (2.1.0, and the fork's 2.3.6) calls with.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ropevit_mmdet.compat.ops import boxes, carafe, deformable, losses, masked_conv, roi_align
from ropevit_mmdet.compat.ops._kernels import unsupported

EXT_NAME = "mmcv._ext"
_MODULES = (boxes, carafe, deformable, losses, masked_conv, roi_align)
OPS = {  # the public functions of these modules
    name: op
    for module in _MODULES
    for name, op in vars(module).items()
    if not name.startswith("_") and getattr(op, "__module__", "") == module.__name__
}


def install() -> None:
    """Provides `mmcv._ext` where mmcv has no compiled one. Idempotent."""
    if find_spec(EXT_NAME) is None:
        sys.modules[EXT_NAME] = fallback_module()


def fallback_module() -> ModuleType:
    """A new module with the ops; every other name in it is a function that raises."""
    module = ModuleType(EXT_NAME, __doc__)
    versions = dict.fromkeys(("get_compiler_version", "get_compiling_cuda_version"), _not_compiled)
    vars(module).update(OPS, **versions, __getattr__=_other_name)
    module.__spec__ = ModuleSpec(EXT_NAME, None, origin=__name__)
    return module


def _other_name(name: str) -> Callable:
    """The module's `__getattr__`: mmcv checks at import that every op exists."""
    if name.startswith("__"):  # __path__, __file__: of the import system and inspect
        raise AttributeError(name)
    return unsupported(name)


def _not_compiled() -> str:
    return "not compiled (fallback on torchvision)"
