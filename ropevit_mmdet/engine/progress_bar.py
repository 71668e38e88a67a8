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
    """Shows a bar while `runner` trains: of the epoch, or of all iterations of an
    IterBasedTrainLoop, and of each validation; none if stderr is not a terminal.
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
        hook.bar.close()
        for handler in handlers:
            del handler.emit


class _ProgressBars(Hook):
    priority = "LOWEST"

    def __init__(self) -> None:
        self.bar: Any = tqdm(disable=True)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            self.show("train", batch_idx, loop.max_iters)
        else:
            name = f"epoch {loop.epoch + 1}/{loop.max_epochs}"
            self.show(name, batch_idx, len(loop.dataloader))

    def before_val_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self.show("validate", batch_idx, len(runner.val_dataloader))

    def show(self, name: str, done: int, total: int) -> None:
        """Replaces a bar that is complete, or of another name."""
        if self.bar.disable or self.bar.desc != name:
            self.bar.close()
            self.bar = tqdm(desc=name, initial=done, total=total, dynamic_ncols=True)

    def _after_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        self.bar.update()
        if self.bar.n >= self.bar.total:
            self.bar.close()
