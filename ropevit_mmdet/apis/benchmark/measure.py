"""Times backbones side by side: interleaved in one process; on a CPU memory in a fresh one each.

Which backbones, and where they come from, is the caller's business (``tools/benchmark.py``). Every
one gets the image that makes the same number of tokens as ours at patch 14.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ropevit_mmdet.apis.benchmark.flops import count_flops
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.weights.architectures import resolve_arch

PATCH = 14
MODES = ("forward", "training")  # training: forward and backward


class Timing(NamedTuple):
    """One variant at one size in one mode. Times in seconds, spread between the quartiles."""

    variant: str
    pixels: int
    mode: str
    median: float
    spread: float
    runs: int
    flops: int | None


class Variant(NamedTuple):
    """A backbone to compare; ``build`` takes the side of the grid in patches."""

    build: Callable[[int], nn.Module]
    patch: int


class Bench:
    """Models and images of several variants at one size on one device, timed in turns.

    Args:
        variants: what to compare, by name.
        device, dtype: where and in what; half types run under autocast.
        batch: images at a time.
        compiled: run through ``torch.compile``.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 1,
        compiled: bool = False,
    ) -> None:
        self.variants, self.dtype = variants, dtype
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.batch, self.compiled = batch, compiled
        self._models: dict[str, nn.Module] = {}

    def time(
        self, pixels: int, mode: str, *, runs: int, progress: Callable[[str], None]
    ) -> list[Timing]:
        """Times every variant ``runs`` times, taking turns, after one warm-up round."""
        seconds: dict[str, list[float]] = {name: [] for name in self.variants}
        for turn in range(runs + 1):
            for name in self.variants:
                progress(f"{pixels} px, {mode}, round {turn} of {runs}: {name}")
                taken = self.step(name, pixels, mode)
                if turn:
                    seconds[name].append(taken)
        return [
            Timing(
                name,
                pixels,
                mode,
                statistics.median(taken),
                _spread(taken),
                runs,
                self.flops(name, pixels, mode),
            )
            for name, taken in seconds.items()
        ]

    def step(self, name: str, pixels: int, mode: str) -> float:
        """One forward, or forward and backward, of one variant; the seconds it took."""
        model, images = self.model(name, pixels), self.images(name, pixels)
        model.train(mode == "training")
        gc.collect()
        half = self.dtype != torch.float32
        wait_for(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            if mode == "forward":
                with torch.inference_mode():
                    model(images)
            else:
                _scalar(model(images)).backward()
        wait_for(self.device)
        taken = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return taken

    def model(self, name: str, pixels: int) -> nn.Module:
        if name not in self._models:
            model = self.variants[name].build(pixels // PATCH).to(self.device)
            self._models[name] = torch.compile(model, dynamic=True) if self.compiled else model
        return self._models[name]

    def images(self, name: str, pixels: int) -> Tensor:
        side = pixels // PATCH * self.variants[name].patch
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (self.batch, 3, side, side)
        return torch.randn(shape, generator=generator, device=self.device)

    def flops(self, name: str, pixels: int, mode: str) -> int | None:
        """Operations of a step, known for our own models; the backward pass costs two forwards."""
        model = getattr(self._models.get(name), "_orig_mod", self._models.get(name))
        if not isinstance(model, RoPEViT):
            return None
        return self.batch * count_flops(model, pixels, pixels) * (1 if mode == "forward" else 3)

    def matmul_rate(self, *, seconds: float = 3.0) -> float:
        """Operations per second of the matrix product that a ViT-B spends most of its time in."""
        arch = resolve_arch("rope_vit_reg4_b14")
        x = torch.randn(4096 * self.batch, arch.hidden_dim, device=self.device, dtype=self.dtype)
        weight = torch.randn(arch.hidden_dim, arch.mlp_dim, device=self.device, dtype=self.dtype)
        out = torch.empty(len(x), arch.mlp_dim, device=self.device, dtype=self.dtype)
        products = 1 if self.device.type == "cpu" else 20  # a launch is a part of a short one
        taken, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken) < 5:
            wait_for(self.device)
            start = time.perf_counter()
            for _ in range(products):
                torch.mm(x, weight, out=out)
            wait_for(self.device)
            taken.append((time.perf_counter() - start) / products)
        return 2 * len(x) * arch.hidden_dim * arch.mlp_dim / statistics.median(taken[1:])

    def largest_batch(self, name: str, pixels: int, mode: str, gigabytes: float) -> int:
        """The most images that a step takes on a GPU with so much memory, weights included.

        Raises ValueError as `share_of_gpu` does.
        """
        share, batch = share_of_gpu(self.device, gigabytes), self.batch
        torch.cuda.set_per_process_memory_fraction(share, self.device)
        try:
            return largest(partial(self._fits, name, pixels, mode))
        finally:
            self.batch = batch
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _fits(self, name: str, pixels: int, mode: str, batch: int) -> bool:
        self.batch = batch
        try:
            self.step(name, pixels, mode)
        except torch.OutOfMemoryError:
            for model in self._models.values():
                model.zero_grad(set_to_none=True)
            return False
        finally:
            torch.cuda.empty_cache()
        return True


def share_of_gpu(device: torch.device, gigabytes: float) -> float:
    """What part of a GPU PyTorch may take to have as much as on one of so many GB (2^30 bytes).

    One GB is left to CUDA itself. Raises ValueError if this GPU has not as much, or is none.
    """
    if device.type != "cuda":
        raise ValueError(f"the largest batch is that of a GPU, not of {device.type}")
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    if not 0 < gigabytes - 1 <= total:
        raise ValueError(f"{gigabytes:g} GB: it must be more than 1, and this GPU has {total:.1f}")
    return (gigabytes - 1) / total


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, if all below one that fits do; 0 if 1 does not."""
    fitting, failing = 0, 1
    while fits(failing):
        fitting, failing = failing, 2 * failing
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting


def peak_memory(bench: Bench, name: str, pixels: int, mode: str) -> int:
    """Bytes above the weights at the highest point of a step; on a CPU for a fresh process.

    On a CPU this is the process's resident memory (Linux), on a GPU what the allocator gave out.
    """
    bench.model(name, pixels)
    if bench.device.type == "cuda":
        bench.step(name, pixels, mode)  # the workspaces of libraries come and stay
    return peak_of(lambda: bench.step(name, pixels, mode), bench.device)


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes above what is held now, at the highest point of some work."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = _proc_bytes("self/status", "VmRSS")
    work()
    return _proc_bytes("self/status", "VmHWM") - before


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done what it was given: the clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit_memory() -> None:
    """Makes a want of memory an error of this process rather than a kill by the system (Linux)."""
    if not Path("/proc/meminfo").exists():
        return
    import resource

    free = _proc_bytes("meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))


def _proc_bytes(file: str, field: str) -> int:
    """A field that Linux gives in kB in a file under /proc."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _scalar(output) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.float().mean()


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return quartiles[2] - quartiles[0]
