"""NonFiniteGuard: stops a run at a loss or gradient that is NaN or infinite, or skips the step."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from ropevit_mmdet.engine.hooks._latest_checkpoint import latest_checkpoint
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
        self._losses: dict[str, float] = {}  # not finite, since the last step
        self._names: list[str] = []  # of parameters with a gradient
        self._norms = torch.zeros(0)  # of their gradients at the last step
        self._skipped_now = False

    def before_train(self, runner) -> None:
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._wrapper = runner.optim_wrapper
        self._wrapper.step = partial(self._step, self._wrapper.step)

    def after_train(self, runner) -> None:
        del self._wrapper.step  # restores the method of the class

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not math.isfinite(outputs["loss"].item()):
            values = {key: v.item() for key, v in outputs.items() if "loss" in key}
            parts = {key: v for key, v in values.items() if key != "loss" and not math.isfinite(v)}
            self._losses |= parts or {"loss": values["loss"]}
        if not self._wrapper.should_update():
            if self._losses and self.action == "stop" and get_world_size() == 1:
                self._measure()
                self._stop(runner)  # now: a checkpoint would save the accumulated gradients
            return
        self.skipped += self._skipped_now
        self._in_a_row = (self._in_a_row + 1) * self._skipped_now
        broken = bool(self._losses) or not (self._skipped_now or self._finite())
        if self._in_a_row > self.max_skips or self.action == "stop" and _anywhere(broken):
            self._stop(runner)
        if self._skipped_now or self._losses:
            skipped = f"step skipped, {self.skipped} so far: " if self._skipped_now else ""
            runner.logger.warning(f"iteration {runner.iter + 1}: {skipped}{self._description()}")
        self._losses, self._skipped_now = {}, False

    def _step(self, step: Callable[..., None], **kwargs) -> None:
        """Replaces `optim_wrapper.step` during training."""
        scaled = self._is_scaled()
        self._measure()
        if scaled or self.action == "skip":
            self._skipped_now = _anywhere(not self._finite())
        if scaled or not self._skipped_now:  # a scaler skips the step itself, and lowers its scale
            step(**kwargs)

    def _measure(self) -> None:
        gradients = {name: p.grad for name, p in self._model.named_parameters()}
        named = [(name, g) for name, g in gradients.items() if g is not None and g.numel()]
        self._names = [name for name, _ in named]
        # Adam squares gradients: a norm that overflows is not finite either, unless it is scaled.
        order = math.inf if self._is_scaled() else 2
        norms = torch._foreach_norm([gradient for _, gradient in named], order) if named else []
        self._norms = torch.stack(list(norms)) if named else torch.zeros(0)

    def _is_scaled(self) -> bool:
        scaler = getattr(self._wrapper, "loss_scaler", None)
        return scaler is not None and scaler.is_enabled()

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
        losses = [f"{name} is {value}" for name, value in self._losses.items()]
        finite = self._norms.isfinite().tolist()
        names = [name for name, fine in zip(self._names, finite, strict=True) if not fine]
        gradients = f"gradients that are not finite in {', '.join(names[:3])}" if names else ""
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return "; ".join(filter(None, [", ".join(losses), gradients + more]))


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    number = torch.tensor(float(flag))
    all_reduce(number, "max")
    return bool(number)
