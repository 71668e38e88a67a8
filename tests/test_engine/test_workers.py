"""A data loader's worker goes when the main process is gone, even if nobody takes what it read."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ropevit_cli._machine import is_running
from ropevit_mmdet.compat.workers import WATCH
from tests.processes import ROOT

# Its second sample fills the pipe to the main process, which takes the first one only.
PROGRAM = """
import os, sys, time
from functools import partial
from torch.utils.data import DataLoader
import ropevit_mmdet
from ropevit_mmdet.compat.workers import init_worker

def worker(index):
    return os.getpid(), b"1" * 2**20

seeded = partial(init_worker, num_workers=1, rank=0, seed=0)
loader = DataLoader(range(9), 1, num_workers=1, collate_fn=worker, worker_init_fn=seeded)
batches = iter(loader)
pid, _ = next(batches)
print(pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs to know who sent a signal")
def test_a_worker_with_a_full_pipe_goes_with_a_killed_main_process():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as main:
        worker = int(main.stdout.readline())
        main.kill()
    end = time.monotonic() + 4 * WATCH
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.1)
    if is_running(worker):
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker lives on")
