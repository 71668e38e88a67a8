"""NonFiniteGuard: stops a run at a loss or gradient that is NaN or infinite, or skips the step."""

import logging
import math
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, NoReturn

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from ropevit_mmdet.engine.hooks._checkpoint_files import latest_checkpoint
from ropevit_mmdet.engine.hooks._training_state import in_any_process
from ropevit_mmdet.errors import UserError


class NonFiniteError(UserError):
    """A run stopped by NonFiniteGuard: the message says where, why and how to continue."""

    of_all_processes = True  # commands print it once


@HOOKS.register_module()
class NonFiniteGuard(Hook):
    """Checks every loss, and the gradients of every optimizer step.

    Gradients are checked after DDP has summed them, so that all processes agree, and before they
    are clipped, which would spread a NaN over all of them.

    Args:
        action: 'stop' ends the run before a checkpoint of it is saved; 'skip' skips steps whose
            gradients are not finite and warns with a count. Only 'skip' waits for the device before
            each step.
        max_skips: skipped steps in a row, here or by the gradient scaler of `--amp`; one more stops
            the run with either action.
    """

    priority = "HIGH"  # after the log values, before EMA, log lines and checkpoints

    def __init__(self, action: str = "stop", max_skips: int = 100) -> None:
        if action not in ("stop", "skip"):
            raise UserError(f"NonFiniteGuard: action must be 'stop' or 'skip', got {action!r}")
        self.action, self.max_skips = action, max_skips
        self.skipped = self._in_a_row = 0
        self._reset()

    def before_train(self, runner) -> None:
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        wrapper = self._wrapper = runner.optim_wrapper
        wrapper.step = update_wrapper(partial(self._step, wrapper.step), wrapper.step)
        # Else mmengine's schedulers warn of a first step that an accumulation or a skip delays.
        wrapper._global_step = 0

    def after_train(self, runner) -> None:
        self._wrapper.step = self._wrapper.step.__wrapped__

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        losses = {key: value.item() for key, value in outputs.items() if "loss" in key}
        self._losses |= {key: v for key, v in losses.items() if not math.isfinite(v)}
        stepped, skipped = self._wrapper.should_update(), self._skipped
        if stepped:
            self.skipped += skipped
            self._in_a_row = (self._in_a_row + 1) * skipped
        broken = bool(self._losses) or not (skipped or self._finite())
        if self._in_a_row > self.max_skips or self.action == "stop" and in_any_process(broken):
            self._stop(runner)
        if stepped and (skipped or self._losses):
            text = f"step skipped, {self.skipped} so far: " if skipped else ""
            runner.logger.warning(f"iteration {runner.iter + 1}: {text}{self._description()}")
        if stepped:
            self._reset()

    def _reset(self) -> None:
        self._losses: dict[str, float] = {}  # not finite, since the last step
        self._names: list[str] = []  # of parameters with a gradient
        self._norms = torch.zeros(0)  # of their gradients at the step
        self._skipped = False

    def _step(self, step: Callable[..., None], **kwargs) -> None:
        """Replaces `optim_wrapper.step` during training."""
        scaler = getattr(self._wrapper, "loss_scaler", None)
        scaled = scaler is not None and scaler.is_enabled()
        gradients = {name: p.grad for name, p in self._model.named_parameters()}
        named = {name: g for name, g in gradients.items() if g is not None and g.numel()}
        if named:
            # Adam squares gradients: a norm that overflows is not finite either, unless scaled.
            norms = torch._foreach_norm(list(named.values()), math.inf if scaled else 2)
            self._names, self._norms = list(named), torch.stack(list(norms))
        if scaled or self.action == "skip":
            self._skipped = in_any_process(not self._finite())
        if scaled or not self._skipped:  # a scaler skips the step itself, and lowers its scale
            step(**kwargs)

    def _finite(self) -> bool:
        return bool(self._norms.isfinite().all())  # waits for the device

    def _stop(self, runner) -> NoReturn:
        texts = all_gather_object(self._description())
        if len(set(texts)) > 1:
            texts = [f"process {rank}: {text or 'all finite'}" for rank, text in enumerate(texts)]
        row = f", after {self._in_a_row - 1} skipped steps" if self._in_a_row > 1 else ""
        path = latest_checkpoint(runner.work_dir)
        checkpoint = f"--resume continues from {path}" if path else "There is no checkpoint yet"
        message = (
            f"iteration {runner.iter + 1}{row}: {'; '.join(dict.fromkeys(texts))}. {checkpoint}. "
            "Try a lower learning rate, clip_grad, bfloat16 instead of float16, or --cfg-options "
            "default_hooks.non_finite.action=skip"
        )
        print_log(message, "current", logging.WARNING)  # into the log file too
        raise NonFiniteError(message)

    def _description(self) -> str:
        parts = {key: v for key, v in self._losses.items() if key != "loss"} or self._losses
        losses = ", ".join(f"{name} is {value}" for name, value in parts.items())
        finite = self._norms.isfinite().tolist()
        names = [name for name, fine in zip(self._names, finite, strict=True) if not fine]
        gradients = f"gradients that are not finite in {', '.join(names[:3])}" if names else ""
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return "; ".join(filter(None, [losses, gradients + more]))
