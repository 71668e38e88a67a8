"""Data loader workers that ignore the signals which end a job, but not those of their own run.

A process manager signals every process of a job. PyTorch's workers end at once, and with them the
main process, by an exception at any place, before it could save.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable

import mmengine.runner._flexible_runner
import mmengine.runner.runner
from mmengine.dataset import worker_init_fn

INTERVAL = 5.0  # seconds between two checks whether the main process exists


def use_worker_init(function: Callable[..., None] = worker_init_fn) -> None:
    """Sets the function that seeds the workers of the next data loaders; default: mmengine's."""
    for module in (mmengine.runner.runner, mmengine.runner._flexible_runner):
        module.default_worker_init_fn = function


def init_worker(worker_id: int, *, ignored: Iterable[int], **settings) -> None:
    """Seeds a worker as mmengine does, and has it ignore signals except its main process's SIGTERM.

    Systems that do not report the sender of a signal (macOS) are excepted.
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
