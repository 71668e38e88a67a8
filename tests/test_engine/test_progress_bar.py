"""The progress bar of a training run: what a terminal shows, and nothing elsewhere."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from ropevit_mmdet.engine.progress_bar import _next_validation
from tests.commands import ropevit
from tests.tiny_coco import write_tiny

EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=False)
"""
ITERATIONS = "train_cfg.update(max_iters=3, val_interval=2)\n"


class Terminal(io.StringIO):
    """Both streams of a process in one terminal."""

    def isatty(self):
        return True

    def lines(self):
        """Its lines at the end: of a line, what was written last at each column."""
        for line in self.getvalue().split("\n"):
            shown = ""
            for text in line.split("\r"):
                shown = text + shown[len(text) :]
            yield re.sub(r"\x1b\[[\d;]*m|\x1b\[A", "", shown).rstrip()


@pytest.mark.parametrize(
    ("more", "bars"),
    [
        (ITERATIONS, ["train: 2/2", "validate: 4/4", "train: 3/3", "validate: 4/4"]),
        (EPOCHS, ["epoch 1/1: 2/2", "validate: 4/4"]),
    ],
)
def test_progress_bar_leaves_log_lines_readable(more, bars, tmp_path, monkeypatch):
    config = write_tiny(tmp_path)
    config.write_text(config.read_text() + more)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    hook = ["default_hooks.logger.type=LoggerHook", "default_hooks.logger.interval=1"]
    ropevit("train", config, "--work-dir", tmp_path / "run", "--cfg-options", *hook)
    lines = list(terminal.lines())
    shown = [re.match(r"(.+): 100%\|.*\| (\d+/\d+) \[\d\d:\d\d<00:00", line) for line in lines]
    assert [": ".join(match.groups()) for match in shown if match] == bars
    (log,) = tmp_path.glob("run/*/*.log")
    logged = [line for line in log.read_text().splitlines() if "loss:" in line]
    assert len(logged) == (3 if more == ITERATIONS else 2)
    printed = [line for line in lines if "loss:" in line]
    assert all(re.match(r"\d\d/\d\d \d\d:", line) for line in printed)
    printed, logged = ([line.partition("INFO - ")[2] for line in x] for x in (printed, logged))
    assert printed == logged


@pytest.mark.parametrize(
    ("done", "begin", "interval", "expected"),
    [(0, 1, 5, 5), (4, 1, 5, 5), (5, 1, 5, 10), (10, 1, 5, 12), (0, 8, 5, 10), (0, 99, 5, 12)],
)
def test_progress_bar_ends_at_the_next_validation(done, begin, interval, expected):
    loop = SimpleNamespace(iter=done, val_begin=begin, val_interval=interval, max_iters=12)
    runner = SimpleNamespace(train_loop=loop, val_loop=object())
    assert _next_validation(runner) == expected
    runner.val_loop = None
    assert _next_validation(runner) == 12
