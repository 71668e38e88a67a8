"""Data loader workers that outlive the signals which a whole machine gets when it is taken away.

A process manager sends them to every process of a job. PyTorch's workers die of it at once, and
with them the main process, by an exception that comes anywhere, before it could save anything.
They do not outlive the main process: PyTorch's notice its death, but wait for ever to hand over
what they have read, if it is more than a pipe holds.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from functools import partial

import mmengine.runner._flexible_runner
import mmengine.runner.runner
from mmengine.dataset import worker_init_fn

from ropevit_mmdet._output import is_running

WATCH = 5.0  # seconds between two looks at whether the main process lives


def outlive(signals: Iterable[int]) -> None:
    """Have the workers of every run that is built from now on obey their main process alone.

    The signals do nothing to them but SIGTERM of the main process, which ends them. Workers whose
    config names a `worker_init_fn` of its own are not reached, nor those on systems that do not say
    who sent a signal.
    """
    if hasattr(signal, "sigtimedwait"):
        prepared = partial(init_worker, outlived=frozenset(signals))
        mmengine.runner.runner.default_worker_init_fn = prepared
        mmengine.runner._flexible_runner.default_worker_init_fn = prepared


def init_worker(worker_id: int, *, outlived: Iterable[int] = (), **settings) -> None:
    """mmengine's `worker_init_fn`, which seeds a worker; called in the worker."""
    worker_init_fn(worker_id, **settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, *outlived})
    main_process = multiprocessing.parent_process().pid
    threading.Thread(target=_obey, args=(main_process,), daemon=True).start()


def _obey(main_process: int) -> None:
    """Ends this process on a SIGTERM of the main process, and soon after that is gone."""
    parent = os.getppid()  # a fork server, it may be
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, WATCH)
        told = received is not None and received.si_pid == main_process
        if told or os.getppid() != parent or not is_running(main_process):
            os._exit(0)
