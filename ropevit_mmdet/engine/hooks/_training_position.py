"""Brings data loaders and loops of a resumed run to the position that the checkpoint has."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

_EPOCH_SEED_STEP = 100_003  # between the seeds of two epochs; more than the number of workers


def call_after_batches(loop: IterBasedTrainLoop, count: int, action: Callable[[], None]) -> None:
    """Has the loop's data iterator call `action` after `count` batches, before the next one."""
    batches = loop.dataloader_iterator

    def iterate():
        yield from itertools.islice(batches, count)
        action()
        yield from batches

    loop.dataloader_iterator = iterate()


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
