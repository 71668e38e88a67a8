"""Stops a run whose loss or gradients are not finite, or leaves such steps out and counts them.

One reduction per step, of the gradients that the step is made of: before they are clipped, which
would spread a NaN over all of them, and after DDP has summed them, so that all processes agree.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint

LEAST_LOSS_SCALE = 2.0**-24  # float16's smallest number: below, a gradient scaler is lost
SHOWN = 3  # names of a kind in a message


class NonFiniteError(ValueError):
    """The training went wrong: the message says where, and what is left of it."""

    of_all_processes = True  # one of them tells it


@HOOKS.register_module()
class NonFiniteGuard(Hook):
    """Looks at every loss and at the gradients of every step of the optimizer.

    Under a gradient scaler (`--amp`) gradients that overflow are its own business: whatever the
    action, it leaves the step out and lowers its scale, and that is counted and warned of.

    Args:
        action: 'stop' ends the run before anything broken is saved; the numbers are looked at
            behind the step, where logging has waited for the device anyway. 'skip' leaves out
            every step whose gradients are not finite, which costs one wait per step, and warns
            with a count; learning rates continue. A loss that is not finite but has finite gradients
            is warned of.
        max_skips: steps left out in a row, by the scaler or here; one more stops the run.

    Raises (while training, in all processes alike):
        NonFiniteError: the iteration, the losses, the parameter groups and parameters, the last
            checkpoint. Gradients whose squares overflow count as not finite: Adam squares them.
    """

    priority = "HIGH"  # behind the log values, before EMA, log lines and checkpoints

    def __init__(self, action: str = "stop", max_skips: int = 100) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"NonFiniteGuard: action must be 'stop' or 'skip', got {action!r}")
        if max_skips < 0:
            raise ValueError(f"NonFiniteGuard: max_skips must not be negative, got {max_skips}")
        self.action, self.max_skips = action, max_skips
        self.skipped = self._in_a_row = 0
        self._losses: dict[str, float] = {}  # those not finite since the last step
        self._steps: list[_Gradients] = []  # what the last step was made of
        self._left_out = False

    def before_train(self, runner) -> None:
        self._names = _parameter_names(runner.model)
        self._wrappers = _wrappers(runner.optim_wrapper)
        for wrapper in self._wrappers:
            wrapper.step = partial(self._step, wrapper, wrapper.step)

    def after_train(self, runner) -> None:
        for wrapper in self._wrappers:
            del wrapper.step  # its class has it again

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if not math.isfinite(float(outputs["loss"])):
            self._losses |= _losses_not_finite(outputs)
        if not all(wrapper.should_update() for wrapper in self._wrappers):
            if self._losses and self.action == "stop" and get_world_size() == 1:
                self._steps = [_Gradients(w.optimizer, scaled=False) for w in self._wrappers]
                self._stop(runner)  # a checkpoint here would keep the accumulated gradients
            return
        if self.action == "stop":
            broken = bool(self._losses)
            if not self._left_out:
                broken = broken or not all(gradients.finite() for gradients in self._steps)
            if _anywhere(broken):
                self._stop(runner)
        if self._left_out:
            self._count(runner)
        elif self._losses:
            runner.logger.warning(
                f"{_place(runner)}: {_told_losses(self._losses)}; the gradients are finite"
            )
        for scaler in _scalers(self._wrappers):
            _check_scale(runner, scaler)
        self._in_a_row *= self._left_out
        self._losses, self._steps, self._left_out = {}, [], False

    def _step(self, wrapper: OptimWrapper, step: Callable[..., None], **kwargs) -> None:
        """What `wrapper.step` does while a run continues."""
        scaled = bool(_scalers([wrapper]))
        gradients = _Gradients(wrapper.optimizer, scaled=scaled)
        self._steps.append(gradients)
        if (scaled or self.action == "skip") and _anywhere(not gradients.finite()):
            self._left_out = True
            if not scaled:
                return
        step(**kwargs)

    def _count(self, runner) -> None:
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.max_skips:
            self._stop(runner)
        runner.logger.warning(
            f"{_place(runner)}: step left out, number {self.skipped} of this run: {self._told()}"
        )

    def _stop(self, runner) -> None:
        """Raises NonFiniteError with what each process has found."""
        found = all_gather_object(self._told())
        if len(set(found)) > 1:
            found = [f"process {rank}: {text or 'all finite'}" for rank, text in enumerate(found)]
        row = f", after {self._in_a_row - 1} steps left out" if self._in_a_row > 1 else ""
        _end(
            f"{_place(runner)}{row}: {'; '.join(dict.fromkeys(found))}. {_last(runner)}. A lower "
            "learning rate, clip_grad, or bfloat16 instead of float16 may help; --cfg-options "
            "default_hooks.non_finite.action=skip leaves such steps out"
        )

    def _told(self) -> str:
        groups = [text for gradients in self._steps for text in gradients.told(self._names)]
        parts = [_told_losses(self._losses)] if self._losses else []
        if groups:
            parts.append(f"gradients that are not finite in {_few(groups, '; ')}")
        return "; ".join(parts)


class _Gradients:
    """The norms of the gradients of one step, on their device: where they are scaled the largest
    number of each, which is what a scaler judges by.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, scaled: bool) -> None:
        self.optimizer = optimizer
        self.members = [
            (number, parameter)
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        gradients = [parameter.grad for _, parameter in self.members]
        norms = torch._foreach_norm(gradients, math.inf if scaled else 2) if gradients else []
        self.norms = torch.stack(norms) if norms else torch.zeros(1)

    def finite(self) -> bool:
        """Waits for the device."""
        return math.isfinite(float(self.norms.max()))  # a NaN is the largest

    def told(self, names: Mapping[int, str]) -> list[str]:
        """A phrase per parameter group that holds gradients which are not finite."""
        broken: dict[int, list[str]] = {}
        for (number, parameter), finite in zip(self.members, self.norms.isfinite().tolist()):
            if not finite:
                name = names.get(id(parameter), "a parameter without a name")
                broken.setdefault(number, []).append(name)
        groups = self.optimizer.param_groups
        return [
            f"parameter group {number} of {len(groups)}"
            + (f", layer {groups[number]['layer']}" if "layer" in groups[number] else "")
            + f", learning rate {groups[number]['lr']:.3g} ({_few(broken[number])})"
            for number in broken
        ]


def _wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _scalers(wrappers: list[OptimWrapper]) -> list[torch.amp.GradScaler]:
    """The gradient scalers that are at work."""
    found = [getattr(wrapper, "loss_scaler", None) for wrapper in wrappers]
    return [scaler for scaler in found if scaler is not None and scaler.is_enabled()]


def _check_scale(runner, scaler: torch.amp.GradScaler) -> None:
    if scaler.get_scale() < LEAST_LOSS_SCALE:
        _end(
            f"{_place(runner)}: gradients have been infinite or NaN for so long that the loss scale"
            f" has sunk to {scaler.get_scale():.1e}, and nothing is learned. {_last(runner)}. "
            "bfloat16 (--cfg-options optim_wrapper.dtype=bfloat16) or no --amp may help"
        )


def _end(message: str) -> NoReturn:
    """Raises NonFiniteError; the screen gets its message, and the log file here."""
    print_log(message, "current", logging.WARNING)
    raise NonFiniteError(message)


def _parameter_names(model: nn.Module) -> dict[int, str]:
    model = model.module if is_model_wrapper(model) else model
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if get_world_size() == 1:
        return flag
    number = torch.tensor(float(flag))
    all_reduce(number, "max")
    return bool(number)


def _losses_not_finite(outputs: Mapping[str, Any]) -> dict[str, float]:
    values = {name: float(value) for name, value in outputs.items() if "loss" in name}
    values = {name: value for name, value in values.items() if not math.isfinite(value)}
    return {name: value for name, value in values.items() if name != "loss"} or values


def _told_losses(losses: Mapping[str, float]) -> str:
    return _few([f"{name} is {value}" for name, value in losses.items()])


def _place(runner) -> str:
    return f"iteration {runner.iter + 1}"


def _last(runner) -> str:
    """What the training can continue from, in words."""
    path = latest_checkpoint(runner.work_dir)
    if path is None:
        return f"There is no checkpoint in {runner.work_dir} yet"
    return f"The last checkpoint is {path}, and --resume continues from it"


def _few(texts: list[str], comma: str = ", ") -> str:
    more = f"{comma}{len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return comma.join(texts[:SHOWN]) + more
