"""Data loader workers that outlive the SIGTERM which a whole machine gets when it is taken away.

A process manager sends it to every process of a job. PyTorch's workers die of it at once, and with
them the main process, by an exception that comes anywhere, before it could save anything. They do
not outlive the main process: PyTorch's notice its death, but wait for ever to hand over what they
have read, if it is more than a pipe holds.
"""

import os
import signal
import threading

import mmengine.runner._flexible_runner
import mmengine.runner.runner
from mmengine.dataset import worker_init_fn

WATCH = 5.0  # seconds between two looks at whether the main process lives


def outlive_sigterm() -> None:
    """Have the workers of every run that is built from now on obey their main process alone.

    Idempotent. Workers whose config names a `worker_init_fn` of its own are not reached, nor those
    on systems that do not say who sent a signal.
    """
    if hasattr(signal, "sigtimedwait"):
        mmengine.runner.runner.default_worker_init_fn = init_worker
        mmengine.runner._flexible_runner.default_worker_init_fn = init_worker


def init_worker(worker_id: int, **settings) -> None:
    """mmengine's `worker_init_fn`, which seeds a worker; called in the worker."""
    worker_init_fn(worker_id, **settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(main_process: int) -> None:
    """Ends this process on a SIGTERM of the main process, and soon after that is gone."""
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, WATCH)
        told = received is not None and received.si_pid == main_process
        if told or os.getppid() != main_process:
            os._exit(0)
