"""Benchmark of backbones: time interleaved in one process, memory and operations per variant.

Every variant gets the image that makes as many tokens as ours at patch 14.
"""

import dataclasses
import functools
import gc
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT

PATCH = 14
_WINDOWS: dict[str, Any] = dict(window_size=16, pos_embed_mode="tile", rope_interpolation=896)


class Variant(NamedTuple):
    """A backbone to measure; `build` takes the side of the grid in patches, for spawn by name."""

    build: Callable[[int], nn.Module]
    patch: int


def rope_vit(side: int, **arguments: Any) -> nn.Module:
    return RoPEViT("rope_vit_reg4_b14", **arguments)


VARIANTS = {
    "windows": Variant(partial(rope_vit, **_WINDOWS), PATCH),
    "windows-cp": Variant(partial(rope_vit, with_cp=True, **_WINDOWS), PATCH),
    "global": Variant(rope_vit, PATCH),
}


@dataclasses.dataclass
class Bench:
    """A variant at one size (pixels of a side at patch 14) and mode ("forward" or "training")."""

    variant: Variant
    pixels: int
    mode: str
    device: str = "cpu"
    dtype: str = "float32"  # of autocast
    batch: int = 1
    threads: int = 1

    @functools.cached_property
    def model(self) -> nn.Module:
        return self.variant.build(self.pixels // PATCH).to(self.device)

    def step(self) -> float:
        """Runs a forward pass, in training a backward pass too; returns the seconds."""
        model, images, device = self.model, self._images(), torch.device(self.device)
        model.train(self.mode == "training")
        gc.collect()
        wait_for(device)
        start = time.perf_counter()
        with self._autocast(), torch.inference_mode(self.mode == "forward"):
            output = model(images)
            if self.mode == "training":
                _scalar(output).backward()
        wait_for(device)
        taken = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return taken

    def flops(self) -> int:
        """Returns the operations of a step; the backward pass counts as two forward passes."""
        model, images = self.model.eval(), self._images()
        with self._autocast(), torch.inference_mode():
            return count_flops(lambda: model(images)) * (1 if self.mode == "forward" else 3)

    def peak_memory(self) -> int:
        """Returns the peak bytes of a step above the weights: on a CPU of resident memory."""
        if self.device.startswith("cpu"):
            return in_new_process(_peak_on_cpu, self)
        self.step()  # allocates the workspaces of libraries
        return peak_of(self.step, torch.device(self.device))

    def _images(self) -> Tensor:
        side = self.pixels // PATCH * self.variant.patch
        return torch.randn(self.batch, 3, side, side, device=self.device)

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.dtype)
        device_type = torch.device(self.device).type
        return torch.autocast(device_type, dtype, enabled=dtype != torch.float32)


def measure(
    benches: Mapping[str, Bench], *, runs: int, progress: Callable[[str], object]
) -> tuple[list[dict], list[dict]]:
    """Measures variants of one size and mode; returns rows, and those that failed with why.

    Peak memory comes first. Then each variant is timed `runs` times, interleaved, after a warm-up
    round: median, and spread between quartiles.
    """
    rows: dict[str, dict[str, Any]] = {}
    skipped = []
    for name, bench in benches.items():
        progress(f"{name}, {bench.pixels} px, {bench.mode}: memory")
        row: dict[str, Any] = dict(variant=name, pixels=bench.pixels, mode=bench.mode)
        try:
            rows[name] = row | {"peak_bytes": dataclasses.replace(bench).peak_memory()}
        except Exception as error:  # out of memory, or a peer that is not installed or fails
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            skipped.append(row | {"why": why})
    rounds = []
    for index in range(runs + 1):
        progress(f"round {index} of {runs}")
        rounds.append([benches[name].step() for name in rows])
    for name, taken in zip(rows, zip(*rounds[1:], strict=True), strict=True):
        low, median, high = np.percentile(taken, [25, 50, 75]).tolist()
        flops = benches[name].flops()
        rows[name] |= dict(runs=runs, median=median, spread=high - low, flops=flops)
    return list(rows.values()), skipped


def device_name(device: str) -> str:
    """Returns the name of a GPU, or of the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return model[1] if model else platform.machine()


def table(report: Mapping[str, Any]) -> str:
    """Formats one line per variant, size and mode; ratios are to the first variant of a size."""
    settings = "{device}, {threads} threads, {dtype}, batch {batch}, torch {torch}, {date}"
    lines = [
        settings.format_map(report),
        f"{'px':>5} {'mode':8} {'variant':11} {'median s':>9} {'spread':>7} {'ratio':>6} "
        f"{'images/s':>8} {'TFLOP':>6} {'peak MB':>8} {'ratio':>6}",
    ]
    firsts: dict[tuple[int, str], dict] = {}
    for row in report["rows"]:
        first = firsts.setdefault((row["pixels"], row["mode"]), row)
        median, peak = row["median"], row["peak_bytes"]
        lines.append(
            f"{row['pixels']:5} {row['mode']:8} {row['variant']:11} {median:9.4f} "
            f"{row['spread']:7.4f} {median / first['median']:6.2f} {report['batch'] / median:8.3g} "
            f"{row['flops'] / 1e12:6.2f} {peak / 2**20:8.0f} "
            f"{peak / max(1, first['peak_bytes']):6.2f}"
        )
    for row in report["skipped"]:
        lines.append(f"{row['pixels']:5} {row['mode']:8} {row['variant']:11} skipped: {row['why']}")
    return "\n".join(lines)


def count_flops(work: Callable[[], Any]) -> int:
    """Counts the operations of some work; a multiplication with its addition counts as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Returns the peak bytes of some work above what is allocated before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of a function of a module, called in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_on_cpu(bench: Bench) -> int:
    torch.set_num_threads(bench.threads)
    _ = bench.model  # builds it
    return peak_of(bench.step, torch.device("cpu"))


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{field}:\s*(\d+)", text)[0])  # Linux gives kB


def _scalar(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.float().mean()
