"""Process groups of distributed runs: on CPUs too, and destroyed at the end of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from torch import distributed

from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError


@contextmanager
def launched(config: Config) -> Iterator[None]:
    """Joins the processes that a launcher started, and destroys their group after the run.

    Threads of a group that still exists at exit sometimes abort the process (`std::terminate`).
    After an error the group stays: destroying it would wait for processes that may be gone.
    """
    if problem := _problem(config):
        raise UserError(problem)
    if config.launcher != "none" and not torch.cuda.is_available():  # else mmengine does this
        unused = config.get("find_unused_parameters", False)
        settings = dict(broadcast_buffers=False, find_unused_parameters=unused, device_ids=None)
        config.setdefault("model_wrapper_cfg", settings)  # mmengine would pass the index of a GPU
        distributed.init_process_group("gloo")
    try:
        yield
    except SystemExit:  # all processes of a preempted run exit
        _destroy_group()
        raise
    _destroy_group()


def _problem(config: Config) -> str | None:
    launcher, fsdp = config.launcher, "FSDP" in type_name(config.get("strategy"))
    hooks = [*(config.get("custom_hooks") or ()), *(config.get("default_hooks") or {}).values()]
    ema = "EMAHook" in map(type_name, hooks)
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if fsdp and ema:
        return "EMAHook does not work with FSDP: remove EMAHook or `strategy`"
    if launcher not in ("none", "pytorch") and not torch.cuda.is_available():
        return f"--launcher {launcher} needs GPUs; on CPUs use torchrun and --launcher pytorch"
    if launcher == "pytorch" and "RANK" not in os.environ:
        return "--launcher pytorch needs torchrun, which starts the processes: tools/dist_train.sh"
    if launcher == "none" and (fsdp or several):
        fix = "add --launcher pytorch, as tools/dist_train.sh does"
        return f"FSDP and torchrun need a launcher: {fix}"
    return None


def _destroy_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
