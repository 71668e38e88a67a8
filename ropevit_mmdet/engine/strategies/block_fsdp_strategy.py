"""BlockFSDPStrategy: mmengine's FSDP with a unit per ViT block and checkpoints of the plain model.

mmengine 0.10 passes DDP and FSDP the index of a GPU, gives the arguments of
`FSDP.optim_state_dict_to_load` in torch 2.0's order, and clips the gradients of FSDP by the norm of
a process's shard.
"""

from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import clip_grad_norm_

from ropevit_mmdet.models.layers.block import Block
from ropevit_mmdet.weights.state_dict import unwrapped


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's `auto_wrap_policy`: every ViT block is a unit, the rest of the detector another.

    FSDP gathers the weights of a unit before its forward and backward pass, and frees them after.
    """
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class BlockFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with `wrap_blocks`; its checkpoints also resume the optimizer.

    Checkpoints are those of the plain model (`state_dict_cfg='full'`): they load without FSDP.

    Args:
        model_wrapper: changes to the config of MMFullyShardedDataParallel.
        **kwargs: arguments of FSDPStrategy.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        cpu = {} if torch.cuda.is_available() else {"device_id": torch.device("cpu")}
        wrapper = dict(type="MMFullyShardedDataParallel", auto_wrap_policy="wrap_blocks", **cpu)
        kwargs.setdefault("state_dict_cfg", "full")
        super().__init__(model_wrapper=wrapper | (model_wrapper or {}), **kwargs)

    def build_optim_wrapper(self, optim_wrapper, model=None) -> BaseOptimWrapper:
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, "clip_func", None) is clip_grad_norm_:
            wrapper._clip_grad = partial(self._clip_all, wrapper)
        return wrapper

    def _clip_all(self, wrapper: BaseOptimWrapper) -> None:
        """Clips by the norm of all shards, also in processes whose own shard is frozen."""
        norm = self.model.clip_grad_norm_(**wrapper.clip_grad_kwargs)
        wrapper.message_hub.update_scalar("train/grad_norm", float(norm))

    def load_model_state_dict(self, state_dict: dict, **kwargs: Any) -> None:
        super().load_model_state_dict(unwrapped(state_dict), **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(shards)
