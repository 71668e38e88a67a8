"""Samples of memory and open files of a process and its children, read from /proc (Linux)."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

GROWTH = 0.02  # relative growth of memory or open files that is allowed
SETTLED = 200  # steps that do not count
MB = 2**20


@dataclass
class Watch:
    """Samples of memory (RssAnon and RssShmem, bytes) and open files over a program's steps."""

    steps: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def sample(self, step: int) -> None:
        """Adds a sample of this process and its children."""
        processes = [os.getpid(), *_children(os.getpid())]
        self.steps.append(step)
        self.memory.append(sum(_resident(process) for process in processes))
        self.files.append(sum(len(os.listdir(f"/proc/{process}/fd")) for process in processes))

    def growth(self, settled: int = SETTLED) -> str | None:
        """Describes what grew by more than `GROWTH` after `settled` steps; None for nothing."""
        findings = []
        for name, values in (("memory", self.memory), ("open files", self.files)):
            before, after = self._ends(values, settled)
            if after > before * (1 + GROWTH):
                findings.append(f"{name} grew by {after / before - 1:.1%}")
        return "; ".join(findings) or None

    def summary(self, settled: int = SETTLED) -> str:
        """Memory and open files after `settled` steps and at the end."""
        memory, files = self._ends(self.memory, settled), self._ends(self.files, settled)
        first = next(step for step in self.steps if step >= settled)
        return (
            f"steps {first} to {self.steps[-1]}: memory {memory[0] / MB:.0f} to "
            f"{memory[1] / MB:.0f} MiB ({memory[1] / memory[0] - 1:+.1%}), open files "
            f"{files[0]} to {files[1]}"
        )

    def _ends(self, values: list[int], settled: int) -> tuple[int, int]:
        """Medians of the first and the last tenth of the samples: single samples jump."""
        later = [value for step, value in zip(self.steps, values) if step >= settled]
        part = max(1, len(later) // 10)
        return int(median(later[:part])), int(median(later[-part:]))


def plot_watches(watches: Mapping[str, Watch], path: Path, *, settled: int) -> None:
    """Writes a plot of memory and open files over steps, one column per watch."""
    figure = Figure(figsize=(5 * len(watches), 5), layout="constrained")
    panels = figure.subplots(2, len(watches), squeeze=False, sharex="col")
    for column, (name, watch) in enumerate(watches.items()):
        memory = [value / MB for value in watch.memory]
        for row, (label, values) in enumerate(
            {"memory, MiB": memory, "files": watch.files}.items()
        ):
            axis = panels[row, column]
            axis.plot(watch.steps, values, linewidth=1)
            axis.axvline(settled, linewidth=1, color="gray", linestyle="--")
            axis.set_ylim(0, 1.15 * max(values))
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        panels[0, column].set_title(f"{name}: {watch.growth(settled) or 'no growth'}", fontsize=10)
        panels[1, column].set_xlabel(f"steps; those after {settled} (dashed) count")
    figure.savefig(path, dpi=120)


def _children(process: int) -> list[int]:
    """Children of a process, and their children."""
    children = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in (thread / "children").read_text().split():
            children += [int(child), *_children(int(child))]
    return children


def _resident(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)))
