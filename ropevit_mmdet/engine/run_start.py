"""The start of a run: files of weights are read once, and the config is formatted once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from ropevit_mmdet.compat.checkpoint import keep_files


@contextmanager
def run_start() -> Iterator[Hook]:
    """Keeps the content of checkpoint files until the run has loaded its weights.

    mmengine formats the config, which takes as long as building a small model, for the log, for
    each file that it writes and with every checkpoint: here only if it changed.

    Yields:
        A hook for the runner, which releases the files before the first iteration.
    """
    pretty_text: Any = Config.pretty_text
    texts: dict[str, str] = {}

    def formatted(config: Any) -> str:
        settings = repr(config._cfg_dict)
        if settings not in texts:
            texts[settings] = pretty_text.fget(config)
        return texts[settings]

    Config.pretty_text = property(formatted)  # type: ignore[method-assign, assignment]
    keep_files(True)
    try:
        yield _ReleaseFiles()
    finally:
        keep_files(False)
        Config.pretty_text = pretty_text  # type: ignore[method-assign]


class _ReleaseFiles(Hook):
    def before_train(self, runner: Any) -> None:
        keep_files(False)

    before_test = before_train
