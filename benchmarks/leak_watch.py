"""Watch a process, and the ones that it started, for memory and open files that grow.

Memory is read from /proc (Linux, `man 5 proc_pid_status`): resident pages that processes made
themselves. Those of files are left out, which the system drops and fetches again as it likes. What
several processes share counts once for each.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ropevit_mmdet.apis.predict import Predictor
from ropevit_mmdet.visualization.figure_file import save_figure
from ropevit_mmdet.visualization.palette import line_style

GROWTH = 0.02  # of memory and of open files, that passes
SETTLED = 200  # steps, after which it counts
LARGEST = 448  # pixels, of a side of the images to predict


class Watch:
    """Samples of memory, in bytes, and open files over the steps of some work."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.memory: list[int] = []
        self.files: list[int] = []

    def sample(self, step: int) -> None:
        """Note what this process and its children hold now."""
        processes = [os.getpid(), *_children(os.getpid())]
        self.steps.append(step)
        self.memory.append(sum(_resident(process) for process in processes))
        self.files.append(sum(_open_files(process) for process in processes))

    def growth(self, settled: int = SETTLED) -> str | None:
        """What grew by more than `GROWTH` between `settled` steps and the end; None if nothing.

        Both are medians, of the first and the last tenth of the samples in between: single ones
        jump, as memory is freed late and images differ in size.
        """
        said = []
        for what, values in (("memory", self.memory), ("open files", self.files)):
            before, after = self._ends(values, settled)
            if after > before * (1 + GROWTH):
                said.append(f"{what} by {after / before - 1:.1%}")
        return "; ".join(said) or None

    def summary(self, settled: int = SETTLED) -> str:
        """Both at the time when it had settled, and in the end."""
        memory, files = self._ends(self.memory, settled), self._ends(self.files, settled)
        first, last = next(s for s in self.steps if s >= settled), self.steps[-1]
        return (
            f"from step {first} to {last} memory went from {memory[0] / 2**20:.0f} to "
            f"{memory[1] / 2**20:.0f} MiB ({memory[1] / memory[0] - 1:+.1%}), open files from "
            f"{files[0]:.0f} to {files[1]:.0f}"
        )

    def _ends(self, values: list[int], settled: int) -> tuple[int, int]:
        later = [value for step, value in zip(self.steps, values) if step >= settled]
        part = max(1, len(later) // 10)
        return int(median(later[:part])), int(median(later[-part:]))


class WatchHook(Hook):
    """Samples a watch during training, often enough for a few hundred samples."""

    priority = "LOWEST"

    def __init__(self, watch: Watch, every: int) -> None:
        self.watch, self.every = watch, every

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: object, **kw: object) -> None:
        if runner.iter % self.every == 0:
            self.watch.sample(runner.iter + 1)


def soak_training(config: Config, iters: int) -> Watch:
    """Train a config for some iterations, without validation, and watch it."""
    watch = Watch()
    config = deepcopy(config)
    config.train_cfg = {**config.train_cfg, "max_iters": iters, "val_interval": iters + 1}
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.test_dataloader = config.test_cfg = config.test_evaluator = None
    runner = Runner.from_cfg(config)
    runner.register_hook(WatchHook(watch, every=max(1, iters // 400)))
    runner.train()
    return watch


def soak_prediction(
    config: Config,
    checkpoint: str,
    images: int,
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda items: items,
) -> Watch:
    """Predict images of noise of random sizes, each at its own size, and watch it."""
    watch, random = Watch(), np.random.default_rng(0)
    config = deepcopy(config)
    dataset = config.test_dataloader.dataset
    dataset.pipeline = [
        {"type": step["type"], "scale_factor": 1.0} if step["type"] == "Resize" else step
        for step in dataset.pipeline
    ]
    predictor = Predictor(config, checkpoint)
    for number in progress(range(1, images + 1)):
        height, width = random.integers(16, LARGEST, 2)
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        predictor.predict([image], score_thr=0.05)
        watch.sample(number)
    return watch


def plot_soak(watches: Mapping[str, Watch], path: str | os.PathLike[str], *, settled: int) -> None:
    """Write a PNG: memory and open files over steps, a column for each watch.

    Raises ValueError for the name of another kind of file.
    """
    figure = Figure(figsize=(5 * len(watches), 5), layout="constrained")
    panels = figure.subplots(2, len(watches), squeeze=False, sharex="col")
    for index, (name, watch) in enumerate(watches.items()):
        memory = [value / 2**20 for value in watch.memory]
        rows = (("memory, MiB", memory), ("open files", watch.files))
        for axis, (what, values) in zip(panels[:, index], rows):
            axis.plot(watch.steps, values, linewidth=1, **line_style(0))
            axis.axvline(settled, linewidth=1, color="gray", linestyle="--")
            axis.set_ylim(0, 1.15 * max(values))
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
        panels[0, index].set_title(f"{name}: {watch.growth(settled) or 'no growth'}", fontsize=10)
        said = f"steps; what comes after {settled} (dashed) counts"
        panels[1, index].set_xlabel(said)
    save_figure(figure, path)


def _children(process: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _resident(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    counted = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * sum(map(int, counted))


def _open_files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))
