"""The progress bar of a training run: what a terminal shows, and nothing elsewhere."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from ropevit_mmdet.engine.progress_bar import _ProgressBars
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
        (ITERATIONS, ["train: 2/3", "validate: 4/4", "train: 3/3", "validate: 4/4"]),
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
    shown = [re.match(r"(.+): +\d+%\|.*\| (\d+/\d+) \[\d\d:\d\d<\d", line) for line in lines]
    assert [": ".join(match.groups()) for match in shown if match] == bars
    (log,) = tmp_path.glob("run/*/*.log")
    logged = [line for line in log.read_text().splitlines() if "loss:" in line]
    assert len(logged) == (3 if more == ITERATIONS else 2)
    printed = [line for line in lines if "loss:" in line]
    assert all(re.match(r"\d\d/\d\d \d\d:", line) for line in printed)
    printed, logged = ([line.partition("INFO - ")[2] for line in x] for x in (printed, logged))
    assert printed == logged


def test_a_validation_of_teacher_and_student():
    """mmdet's TeacherStudentValLoop passes over the data twice."""
    hook, runner = _ProgressBars(), SimpleNamespace(val_dataloader=range(2))
    for batch in (0, 1, 0, 1):
        hook.before_val_iter(runner, batch)
        hook.after_val_iter(runner, batch)
    assert (hook.bar.n, hook.bar.total) == (2, 2)
    hook.bar.close()
