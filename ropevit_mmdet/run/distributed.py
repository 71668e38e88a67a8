"""Several processes: mmengine's launchers also without a GPU, and its FSDP with a unit per block.

mmengine 0.10 sets a CUDA device in every launcher, gives DDP and FSDP the number of a GPU, and
hands `FSDP.optim_state_dict_to_load` its arguments in torch 2.0's order. The engine stays
mmengine's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ropevit_mmdet.vit import Block


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
    without a launcher, and for a launcher other than torchrun (`pytorch`) without a GPU.
    """
    if config.launcher == "none":
        if "FSDP" in config.get("strategy", {}).get("type", ""):
            raise ValueError(
                "FSDP needs a launcher: start the run by tools/dist_train.sh, or by torchrun with "
                "--launcher pytorch"
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


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
