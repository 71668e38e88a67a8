# Written by ropevit_mmdet: tools/doctor.py --install-ops; --uninstall-ops takes it away again.
"""Stand-in for mmcv's compiled ops, for programs that import `mmcv.ops` before anything else.

`ops_file` copies this file to `mmcv/_ext.py`, where it fills itself from `ropevit_mmdet.compat`.
"""

import importlib.util
import os
import sys
from types import ModuleType


def _ops() -> ModuleType:
    """`ropevit_mmdet.compat.ops`, without ropevit_mmdet/__init__.py: that needs `mmcv.ops`."""
    loaded = sys.modules.get("ropevit_mmdet.compat.ops")
    if loaded is not None:
        return loaded
    found = importlib.util.find_spec("ropevit_mmdet")
    directory = (
        os.path.join(os.path.dirname(found.origin), "stack") if found and found.origin else ""
    )
    if not os.path.isfile(os.path.join(directory, "ops.py")):
        raise ImportError(
            f"{__file__} was written by ropevit_mmdet, which {sys.executable} does not find any "
            "more: install ropevit_mmdet again, or delete that file"
        )
    name = "_ropevit_mmdet_stack"
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    sys.modules[name] = stack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stack)
    return stack.ops


_ops().fill(sys.modules[__name__])
