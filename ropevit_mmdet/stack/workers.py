"""Data loader workers that outlive the SIGTERM which a whole machine gets when it is taken away.

A process manager sends it to every process of a job. PyTorch's workers die of it at once, and with
them the main process, by an exception that comes anywhere, before it could save anything.
"""

import signal
from types import FrameType

import mmengine.runner._flexible_runner
import mmengine.runner.runner
from mmengine.dataset import worker_init_fn

GRACE = 120  # seconds that a worker stays; it is sent away long before, when the main process ends


def outlive_sigterm() -> None:
    """Have the workers of every run that is built from now on stay for GRACE seconds. Idempotent.

    Those whose config names a `worker_init_fn` of its own are not reached.
    """
    mmengine.runner.runner.default_worker_init_fn = init_worker
    mmengine.runner._flexible_runner.default_worker_init_fn = init_worker


def init_worker(worker_id: int, **settings) -> None:
    """mmengine's `worker_init_fn`, which seeds a worker; called in the worker."""
    worker_init_fn(worker_id, **settings)
    signal.signal(signal.SIGTERM, _stay)


def _stay(number: int, frame: FrameType | None) -> None:
    signal.alarm(GRACE)  # ends the process then, also where it hangs
