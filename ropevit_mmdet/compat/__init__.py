"""What the installed mm stack needs to run on a current torch: checks, mmcv's ops, loading.

`prepare` must run before anything imports `mmcv.ops`. Importing this package does nothing yet.
"""

from functools import cache

from ropevit_mmdet.compat import checks, ops
from ropevit_mmdet.compat.checks import StackError

__all__ = ["StackError", "checks", "ops", "prepare"]


@cache
def prepare() -> None:
    """Check the environment, stand in for `mmcv._ext` if it was not compiled, make loading safe,
    decoding exact, logs discreet, and files whole.

    A second call does nothing. Raises StackError, one line that names the fix, where the installed
    packages cannot work together.
    """
    checks.check_distributions(checks.installed_versions())
    checks.import_cv2()
    checks.import_torchvision()
    ops.install()
    checks.import_compiled_ops()
    checks.import_mmdet()
    from ropevit_mmdet.compat import (  # import the mm packages, known to be sound only now
        checkpoint,
        log_text,
        precision,
        writing,
    )

    checkpoint.install()
    log_text.install()
    precision.install()
    writing.install()
