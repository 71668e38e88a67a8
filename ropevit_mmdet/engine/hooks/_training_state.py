"""The state of a run besides weights and optimizer: random states, place in the data, flags."""

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

_EPOCH_SEED_STEP = 100_003  # between the seeds of two epochs; more than the number of workers


def in_any_process(flag: bool) -> bool:
    """Whether the flag is set in any process of the run."""
    number = torch.tensor(float(flag))
    all_reduce(number, "max")
    return bool(number)


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, numpy, torch and the current GPU, as plain data."""
    numpy_state: Any = np.random.get_state()
    algorithm, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restores the states that `random_states()` returned."""
    algorithm, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def call_after_batches(loop: IterBasedTrainLoop, count: int, action: Callable[[], None]) -> None:
    """Has the loop's data iterator call `action` after `count` batches, before the next one."""
    if getattr(loop, "fast_forward_on_resume", False):  # an option of the fork's loop: skips none
        count = 0
    complete = loop.iter >= loop.max_iters  # it would load all batches, and train on none
    batches = itertools.repeat(None) if complete else loop.dataloader_iterator
    loop.dataloader_iterator = _Batches(batches, count, action)


class _Batches(Iterator):
    """The batches of a loop, with an action after `count` of them."""

    def __init__(self, batches: Iterator, count: int, action: Callable[[], None]) -> None:
        self.batches, self.count, self.action = batches, count, action

    def __next__(self) -> Any:
        if self.count == 0:
            self.action()
        self.count -= 1
        return next(self.batches)

    def skip_iter(self, count: int) -> None:
        """Called by the fork's loop; loads the batches, so that the workers' random states move."""
        for _ in range(count):
            next(self)


def skip_batches(loop: EpochBasedTrainLoop, count: int, action: Callable[[], None]) -> None:
    """Has the loop skip the first `count` batches of an epoch and then call `action`."""
    print_log(f"skipping {count} of {len(loop.dataloader)} batches, already trained on", "current")

    def skip(index: int, batch: Any) -> None:
        if index + 1 == count:
            del loop.run_iter  # restores the method of the class
            action()

    loop.run_iter = skip


def restart_workers(dataloader: DataLoader, epoch: int) -> None:
    """Ends the workers of the last epoch, and seeds the next ones by the epoch's index.

    Persistent workers would carry random states from epoch to epoch that no checkpoint contains.
    """
    dataloader._iterator = None
    seeding = dataloader.worker_init_fn
    if isinstance(seeding, partial) and seeding.keywords.get("seed") is not None:
        first = dataloader.__dict__.setdefault("first_epoch_seed", seeding.keywords["seed"])
        seed = (first + _EPOCH_SEED_STEP * epoch) % 2**32
        dataloader.worker_init_fn = partial(seeding, seed=seed)
