"""Several processes: mmengine's launchers also without a GPU, and its FSDP with a unit per block.

mmengine 0.10 sets a CUDA device in every launcher, gives DDP and FSDP the number of a GPU, hands
`FSDP.optim_state_dict_to_load` its arguments in torch 2.0's order, and clips the gradients of FSDP
by the norm of those that a process holds. The engine stays mmengine's.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import clip_grad_norm_

from ropevit_mmdet.models.layers.block import Block


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's `auto_wrap_policy`: every block of a ViT is a unit, the rest of the detector another.

    A unit's weights are gathered when its turn comes and dropped after it.
    """
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class BlockFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, a unit per block, whose checkpoints also resume the optimizer.

    Checkpoints are those of the plain model (`state_dict_cfg='full'`): they load without FSDP.

    Raises:
        ValueError: a parameter without dimensions, as heads of FCOS and ATSS have them: FSDP cannot
            spread it.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs) -> None:
        wrapper = {"type": "MMFullyShardedDataParallel", "auto_wrap_policy": "wrap_blocks"}
        if not torch.cuda.is_available():
            wrapper["device_id"] = torch.device("cpu")  # mmengine gives the number of a GPU
        super().__init__(
            model_wrapper=wrapper | (model_wrapper or {}),
            **{"state_dict_cfg": "full", **kwargs},
        )

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
        if scalars:
            raise ValueError(
                f"FSDP cannot spread the scalar parameter {scalars[0]}: train this detector by "
                "DDP, without `strategy` in its config"
            )
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper, model=None) -> BaseOptimWrapper:
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, "clip_func", None) is clip_grad_norm_:
            wrapper._clip_grad = partial(self._clip_all, wrapper)
        return wrapper

    def _clip_all(self, wrapper: BaseOptimWrapper) -> None:
        """Clip by the norm of all gradients together, in every process: also in one whose shard is
        frozen, where mmengine would not call, and the others would wait for it.
        """
        norm = self.model.clip_grad_norm_(**wrapper.clip_grad_kwargs)
        wrapper.message_hub.update_scalar("train/grad_norm", float(norm))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(shards)


@contextmanager
def launched(config: Config) -> Iterator[None]:
    """Around a run: joins the processes that a launcher started, and parts from them at its end.

    A process that just ends leaves threads of the group behind, which now and then abort it on its
    way out, by `std::terminate`. On an error nothing is waited for: the others may be gone.

    Raises what `use_launcher` does.
    """
    use_launcher(config)
    try:
        yield
    except SystemExit:  # all of them leave together, behind a checkpoint
        _part()
        raise
    _part()


def use_launcher(config: Config) -> None:
    """Where a launcher has started the processes and there is no GPU, join them over gloo.

    With a GPU, or without a launcher, nothing is done: mmengine does it. Raises ValueError for FSDP
    without a launcher or with averaged weights, for torchrun without `--launcher`, and for a
    launcher other than torchrun (`pytorch`) without a GPU.
    """
    fsdp = "FSDP" in config.get("strategy", {}).get("type", "")
    hooks = [*(config.get("custom_hooks") or ()), *(config.get("default_hooks") or {}).values()]
    if fsdp and any(_type(hook) == "EMAHook" for hook in hooks):
        raise ValueError(
            "EMAHook does not work with FSDP, which spreads the weights: leave EMAHook out, or "
            "train by DDP, without `strategy` in the config"
        )
    if config.launcher == "none":
        if fsdp:
            raise ValueError(
                "FSDP needs a launcher: start the run by tools/dist_train.sh, or by torchrun with "
                "--launcher pytorch"
            )
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                "torchrun has started several processes, and each would train for itself: give "
                "--launcher pytorch too, as tools/dist_train.sh does"
            )
        return
    if torch.cuda.is_available():
        return
    if config.launcher != "pytorch":
        raise ValueError(
            f"--launcher {config.launcher} needs GPUs, and PyTorch sees none here; on CPUs start "
            "the processes by torchrun and give --launcher pytorch"
        )
    unused = config.get("find_unused_parameters", False)
    settings = {"broadcast_buffers": False, "find_unused_parameters": unused}
    config.setdefault("model_wrapper_cfg", settings | {"device_ids": None})
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")


def _type(hook: Any) -> str:
    return str(hook.get("type")) if isinstance(hook, dict) else type(hook).__name__


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
