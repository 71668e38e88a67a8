"""What MMDetection 3.3 needs on a current PyTorch: mmcv's ops, checkpoint loading, config paths."""

from ropevit_mmdet.compat import checkpoint, config, ops
from ropevit_mmdet.compat.config import packaged_config

__all__ = ["packaged_config", "prepare"]


def prepare() -> None:
    """Applies the global patches that every model on this stack needs. Idempotent.

    Must run before anything imports `mmcv.ops`. The patches, all of them, and their reasons:

    - `sys.modules`: provides `mmcv._ext` where mmcv has none. mmcv has no wheel for a current
      PyTorch, and mmcv-lite, which installs everywhere, lacks this module.
    - `mmcv.ops.multi_scale_deform_attn`, unless mmcv is compiled: its layer calls
      `ops.multi_scale_deformable` on every device, in a fraction of the memory; for that
      two names of the module are replaced, the PyTorch version of the op and `IS_CUDA_AVAILABLE`.
    - `torch.serialization.add_safe_globals` and `mmengine.runner.CheckpointLoader`: mmengine's
      training checkpoints load with `weights_only=True`, which PyTorch 2.6 made the default, and
      configs in checkpoints are read as literals, not executed.
    - `mmengine.config.Config`: `_base_ = "mmdet::..."`, `"ropevit_mmdet::..."` and `read_base()`
      resolve without `pkg_resources`, which setuptools 82 removed.

    Everything else belongs to a hook or wrapper of the run that needs it.
    """
    ops.install()
    from ropevit_mmdet.compat.ops import multi_scale_deformable  # imports mmcv.ops

    multi_scale_deformable.install()
    checkpoint.install()
    config.install()
