"""PreemptionHook: on SIGTERM, saves a checkpoint and ends the run with exit status 75."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import mmengine.runner._flexible_runner
import mmengine.runner.runner
import torch
from mmdet.registry import HOOKS
from mmengine.dataset import worker_init_fn
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ropevit_mmdet.engine.hooks._training_state import in_any_process
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import ResumableCheckpointHook

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERVAL = 5.0  # seconds between a worker's checks whether the main process exists


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Ends a run after the iteration in which a signal arrives: saves, logs it, exits with 75.

    The run's ResumableCheckpointHook saves: resumed by `--resume`, the run ends with the weights of
    one that was never stopped. Without one, and in a thread, which receives no signals, this hook
    warns and leaves signals alone. Processes of a distributed run agree on the step; with
    accumulated gradients it is the next step of the optimizer. A validation that is due or running
    is completed before the run ends, but its checkpoint is saved before that.

    Args:
        signals: names; Slurm's `--signal=USR1@120` sends SIGUSR1.
    """

    priority = "LOWEST"  # after the checkpoint that the same iteration may have written

    def __init__(self, signals: Sequence[str] = ("SIGTERM",)) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self._received: str | None = None  # the name of a signal
        self._handlers: dict[int, Any] = {}  # those before training
        # An IterBasedTrainLoop starts its workers before a hook first receives the runner.
        use_worker_init(partial(init_worker, ignored=frozenset(self.signals)))

    def before_run(self, runner) -> None:
        use_worker_init()  # the run's data loaders are built

    def before_train(self, runner) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, ResumableCheckpointHook)]
        if hooks and threading.current_thread() is threading.main_thread():
            self._checkpoint = hooks[0]
            self._handlers = {n: signal.signal(n, self._receive) for n in self.signals}
        else:
            where = "in a thread" if hooks else "without ResumableCheckpointHook"
            runner.logger.warning(f"PreemptionHook has no effect {where}")

    def after_train(self, runner) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if get_world_size() > 1 and not runner.optim_wrapper.should_update():
            return
        if in_any_process(self._received is not None):
            done = runner.iter + 1
            self._checkpoint.save_now(runner, done)
            if not _ends_or_validates(runner, done):
                self._exit(runner, done)

    def before_val_epoch(self, runner) -> None:
        batches = torch.tensor(float(len(runner.val_dataloader)))
        all_reduce(batches, "min")  # processes agree as long as all of them have batches
        self._val_batches = int(batches)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if batch_idx < self._val_batches and self._ends_early(runner):
            self._val_batches = 0  # once
            self._checkpoint.save_within_val(runner)
            self._log(runner, "; completing the validation first")

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if self._ends_early(runner):
            self._checkpoint.save_now(runner, runner.iter)
            self._exit(runner, runner.iter)

    def _ends_early(self, runner) -> bool:
        training = bool(self._handlers) and runner.iter < runner.max_iters
        return training and in_any_process(self._received is not None)

    def _receive(self, number: int, frame: Any) -> None:
        self._received = signal.Signals(number).name

    def _exit(self, runner, done: int) -> None:
        self._log(runner, f" after iteration {done}; --resume continues from it")
        sys.exit(EXIT_STATUS)

    def _log(self, runner, text: str) -> None:
        name = self._received or "signal elsewhere"
        runner.logger.warning(f"{name}: saved {self._checkpoint.last_ckpt}{text}")


def _ends_or_validates(runner, done: int) -> bool:
    """Whether an IterBasedTrainLoop validates next, which a resumed run would not repeat."""
    loop = runner.train_loop
    if not isinstance(loop, IterBasedTrainLoop):
        return False
    due = done >= loop.val_begin and done % loop.val_interval == 0
    return done >= loop.max_iters or (due and runner.val_loop is not None)


def use_worker_init(function: Callable[..., None] = worker_init_fn) -> None:
    """Sets the function that seeds the workers of the next data loaders; default: mmengine's."""
    for module in (mmengine.runner.runner, mmengine.runner._flexible_runner):
        module.default_worker_init_fn = function


def init_worker(worker_id: int, *, ignored: Iterable[int], **settings) -> None:
    """Seeds a worker as mmengine does, and has it ignore signals except its main process's SIGTERM.

    A process manager signals every process of a job. PyTorch's workers end at once, and with them
    the main process, by an exception at any place, before it could save. Systems that do not report
    the sender of a signal (macOS) are excepted.
    """
    worker_init_fn(worker_id, **settings)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, *ignored})
        threading.Thread(target=_exit_with_main, daemon=True).start()


def _exit_with_main() -> None:
    """Ends a worker on SIGTERM of its main process, or when that is gone, even with a full pipe."""
    main, parent = multiprocessing.parent_process(), os.getppid()  # differ by a fork server
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, INTERVAL)
        if main and received and received.si_pid == main.pid:
            break
    os._exit(0)
