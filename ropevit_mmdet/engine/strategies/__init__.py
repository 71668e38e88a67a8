"""Training strategies registered with mmengine."""

from ropevit_mmdet.engine.strategies.block_fsdp_strategy import BlockFSDPStrategy, wrap_blocks

__all__ = ["BlockFSDPStrategy", "wrap_blocks"]
