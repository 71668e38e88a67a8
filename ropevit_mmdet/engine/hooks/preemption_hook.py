"""Saves and leaves when the machine is taken away: SIGTERM ends a run without losing a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ropevit_mmdet.compat.workers import outlive
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again
TIMEOUT = 2  # signals that are one and the same: a launcher passes on what its processes got too


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Ends a run on SIGTERM behind the iteration that is at work: saves, says so, exits with 75.

    A resumed run (`--resume`) ends with the weights of one that was never stopped, as after any
    checkpoint of ResumableCheckpointHook, which the run must have. In a distributed run the
    processes agree on the step; where gradients are accumulated, on the next step of the
    optimizer. A validation that is due or running is finished before the run ends, and its
    checkpoint is there before that: where the machine does not wait so long, a run that is resumed
    from it ends with the same weights, without the metrics of that validation. A third signal
    kills.

    Args:
        signals: names of those that mean this; Slurm's `--signal=USR1@120` sends SIGUSR1.
    """

    priority = "LOWEST"  # behind the checkpoint that the same iteration may have written

    def __init__(self, signals: Sequence[str] = ("SIGTERM",)) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if isinstance(signals, str) or unknown:
            raise ValueError(f"PreemptionHook: signals={signals!r} are no names of signals")
        self.signals = [signal.Signals[name] for name in signals]
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        outlive(self.signals)

    def before_train(self, runner) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, ResumableCheckpointHook)]
        if not hooks:
            raise ValueError(
                "PreemptionHook needs default_hooks.checkpoint.type='ResumableCheckpointHook'"
            )
        self._checkpoint = hooks[0]
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._before = {number: signal.signal(number, self._note) for number in self.signals}

    def after_train(self, runner) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if get_world_size() > 1 and not runner.optim_wrapper.should_update():
            return
        if self._agreed():
            done = runner.iter + 1
            self._checkpoint.save_now(runner, done)
            if not _ends_or_validates(runner, done):
                self._leave(runner, done)

    def before_val_epoch(self, runner) -> None:
        batches = torch.tensor(float(len(runner.val_dataloader)))
        if get_world_size() > 1:  # a process with more of them has nobody to agree with on the rest
            all_reduce(batches, "min")
        self._val_batches = int(batches)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self._before or runner.iter >= runner.max_iters or batch_idx >= self._val_batches:
            return
        if self._agreed():
            self._val_batches = 0  # once
            self._checkpoint.save_within_val(runner)
            runner.logger.warning(
                f"told to go: saved {self._checkpoint.last_ckpt}; the validation is finished first"
            )

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not self._before or runner.iter >= runner.max_iters:
            return
        if self._agreed():
            self._checkpoint.save_now(runner, runner.iter)
            self._leave(runner, runner.iter)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if len(self._received) > TIMEOUT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _agreed(self) -> bool:
        """Whether any process was told to go."""
        if get_world_size() == 1:
            return bool(self._received)
        number = torch.tensor(float(bool(self._received)))
        all_reduce(number, "max")
        return bool(number)

    def _leave(self, runner, done: int) -> None:
        name = signal.Signals(self._received[0]).name if self._received else "a signal elsewhere"
        runner.logger.warning(
            f"{name}: saved {self._checkpoint.last_ckpt} behind iteration {done}; --resume continues "
            f"from there. Exit status {EXIT_STATUS}"
        )
        raise SystemExit(EXIT_STATUS)


def _ends_or_validates(runner, done: int) -> bool:
    """Whether an IterBasedTrainLoop validates next, which a resumed run would not make up for."""
    loop = runner.train_loop
    if not isinstance(loop, IterBasedTrainLoop):
        return False
    due = done >= loop.val_begin and done % loop.val_interval == 0
    return done >= loop.max_iters or (due and runner.val_loop is not None)
