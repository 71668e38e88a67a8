"""Fallback for `mmcv._ext`, the compiled part of mmcv 2.x, on operators of torch and torchvision.

mmcv-lite contains every `mmcv/ops/*.py` and lacks only this module. Signatures and in-place output
arguments are those that `mmcv/ops/*.py` (2.1.0) calls with.
"""

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from types import ModuleType

EXT_NAME = "mmcv._ext"
__all__ = ["EXT_NAME", "FallbackFinder", "functions", "install"]


class FallbackFinder(Loader):
    """Import hook, finder and loader in one, that provides `mmcv._ext` and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXT_NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=__name__)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Returns None: the import system creates a plain module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module. A name without an implementation is a function that raises."""
        vars(module).update(functions(), __getattr__=_unsupported_op)


def install() -> None:
    """Makes `import mmcv._ext` find the fallback where mmcv has no compiled one. Idempotent."""
    if not any(isinstance(finder, FallbackFinder) for finder in sys.meta_path):
        sys.meta_path.append(FallbackFinder())  # last: a compiled module is found first


def functions() -> dict[str, Callable]:
    """The implemented functions of `mmcv._ext` by name."""
    from ropevit_mmdet.compat.ops import boxes, deformable, losses, roi_align

    ops = (*boxes.OPS, *deformable.OPS, *losses.OPS, *roi_align.OPS)
    versions = dict.fromkeys(("get_compiler_version", "get_compiling_cuda_version"), _not_compiled)
    return {op.__name__: op for op in ops} | versions


def _unsupported_op(name: str) -> Callable:
    """The fallback's `__getattr__`: mmcv checks at import that every op exists."""
    from ropevit_mmdet.compat.ops._kernels import unsupported

    if name.startswith("__"):  # __path__, __file__: of the import system and inspect
        raise AttributeError(name)
    return unsupported(name)


def _not_compiled() -> str:
    return "not compiled (fallback on torchvision)"
