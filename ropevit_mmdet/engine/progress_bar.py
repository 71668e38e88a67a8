"""A progress bar with the remaining time, in a terminal, above which log lines stay readable."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from tqdm import tqdm


@contextmanager
def progress_bar(runner: Runner) -> Iterator[None]:
    """Shows a bar while `runner` trains: per epoch, or up to the next validation of an
    IterBasedTrainLoop, and per validation; none if stderr is not a terminal.
    """
    if get_rank() or not sys.stderr.isatty():
        yield
        return
    hook = _ProgressBars()
    runner.register_hook(hook)
    handlers = [one for one in runner.logger.handlers if vars(one).get("stream") is sys.stdout]
    for handler in handlers:
        handler.emit = tqdm.external_write_mode(sys.stdout)(handler.emit)  # type: ignore[method-assign]
    try:
        yield
    finally:
        hook.close()
        for handler in handlers:
            del handler.emit


class _ProgressBars(Hook):
    priority = "LOWEST"
    bar: Any = None

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        loop = runner.train_loop
        if self.bar is not None:
            return
        if isinstance(loop, IterBasedTrainLoop):
            name, total = "train", _next_validation(runner)
        else:
            name, total = f"epoch {loop.epoch + 1}/{loop.max_epochs}", len(loop.dataloader)
        self.bar = tqdm(desc=name, initial=batch_idx, total=total, dynamic_ncols=True)

    def before_val_epoch(self, runner) -> None:
        self.bar = tqdm(desc="validate", total=len(runner.val_dataloader), dynamic_ncols=True)

    def _after_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        self.bar.update()
        if self.bar.n >= self.bar.total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _next_validation(runner: Runner) -> int:
    """The iteration after which an IterBasedTrainLoop validates next, or ends."""
    loop: Any = runner.train_loop
    first = max(loop.iter + 1, loop.val_begin)
    next_one = -(-first // loop.val_interval) * loop.val_interval
    return loop.max_iters if runner.val_loop is None else min(next_one, loop.max_iters)
