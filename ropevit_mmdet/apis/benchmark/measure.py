"""Time interleaved in one process, memory and operations, of whole steps and of their parts."""

import dataclasses
import functools
import gc
import itertools
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet.apis.benchmark.models import Work, build
from ropevit_mmdet.apis.benchmark.parts import OTHER

_MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the products that measure the rate of a device


@dataclasses.dataclass
class Bench:
    """One step to measure: a detector or backbone at one image size, mode and batch size."""

    source: str | Callable  # a config, or a function that builds a `Work` from this
    pixels: int  # side of the images
    mode: str = "forward"  # or "training"
    batch: int = 1
    compiled: bool = False
    device: str = "cpu"
    dtype: str = "float32"  # of autocast
    threads: int = 1
    detections: int | None = 100  # per image, exactly; None: as the weights have them
    checkpoint: str | None = None
    data: bool = False  # images of the config's data loaders
    options: tuple[str, ...] = ()  # KEY=VALUE for the config
    sizes: tuple[tuple[int, int], ...] = ()  # pixels (height, width) per image; default: squares

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @functools.cached_property
    def work(self) -> Work:
        return build(self)

    def seconds(self) -> tuple[float, dict[str, float]]:
        """Runs a step; returns its seconds and those of its parts.

        On a GPU parts are measured in another step, because waiting for each slows the whole.
        """
        device = torch.device(self.device)
        parts = self.run(partial(_clock, device))
        if device.type == "cpu":
            return sum(parts.values()), parts
        return self.run(partial(_clock, device), in_parts=False)["whole"], parts

    def run(
        self, reading: Callable[[], float] | None = None, *, in_parts: bool = True
    ) -> dict[str, float]:
        """Runs a step; returns what the reading grew by in its parts, or as a `whole`."""
        work = self.work
        work.model.train(self.training)
        batch = None if self.data else work.batch()
        gc.collect()
        step = partial(self._step, batch)
        if in_parts or reading is None:
            measured = work.meter.measure(reading, step)
        else:
            start = reading()
            step()
            measured = {"whole": reading() - start}
        work.model.zero_grad(set_to_none=True)
        return measured

    def _step(self, batch: Any) -> None:
        work, dtype = self.work, getattr(torch, self.dtype)
        device = torch.device(self.device).type
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            batch = work.batch() if batch is None else batch
            if not self.training:
                with torch.no_grad():
                    work.predict(batch)
                return
            loss = work.loss(batch)
        work.update(loss)

    def flops(self) -> dict[str, float]:
        """Returns the operations of an eager step by part."""
        bench = dataclasses.replace(self, compiled=False) if self.compiled else self
        _ = bench.work  # builds it
        with FlopCounterMode(display=False) as counter:
            return bench.run(counter.get_total_flops)

    def peak_memory(self) -> tuple[int, int]:
        """Returns the bytes of the weights, and the peak of a step above them.

        The peak includes gradients and states of the optimizer; on a CPU it is of resident memory,
        in a new process.
        """
        if self.device.startswith("cpu"):
            return in_new_process(_memory, dataclasses.replace(self))
        return _memory(self)


def benchmark(
    sources: Mapping[str, Any],
    *,
    sizes: Sequence[int],
    modes: Sequence[str],
    batches: Sequence[int],
    compiled: bool = False,
    runs: int = 5,
    progress: Callable[[str], object] = str,
    save: Callable[[dict], object] = id,
    **settings: Any,
) -> dict[str, Any]:
    """Measures sources, by the name in the report, at all sizes, modes and batch sizes.

    Args:
        sources, sizes, modes, batches, settings: fields of `Bench`.
        compiled: also measure each with `torch.compile`.
        runs: timed rounds after a warm-up.
        progress: is called with what is being done.
        save: is called with the report after every size, mode and batch size.

    Returns:
        Settings, `rows` of `measure`, and `skipped`, those that failed with why.
    """
    report: dict[str, Any] = settings | dict(device=device_name(settings["device"]))
    report |= dict(torch=torch.__version__, date=time.strftime("%Y-%m-%d"), rows=[], skipped=[])
    for pixels, mode, batch in itertools.product(sizes, modes, batches):
        benches = {
            (name, is_compiled): Bench(source, pixels, mode, batch, is_compiled, **settings)
            for name, source in sources.items()
            for is_compiled in ((False, True) if compiled else (False,))
        }
        rows, skipped = measure(benches, runs=runs, progress=progress)
        report["rows"] += rows
        report["skipped"] += skipped
        save(report)
    return report


def measure(
    benches: Mapping[tuple[str, bool], Bench], *, runs: int, progress: Callable[[str], object]
) -> tuple[list[dict], list[dict]]:
    """Measures steps of one size and mode; returns rows, and those that failed with why.

    Memory and operations come first. Then each is timed `runs` times, interleaved, after a warm-up
    round, next to matrix products: medians, and spreads between quartiles.
    """
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    skipped = []
    for key, bench in benches.items():
        row: dict[str, Any] = dict(name=key[0], compiled=key[1], pixels=bench.pixels)
        row |= dict(mode=bench.mode, batch=bench.batch, runs=runs)
        progress(f"{key[0]}, {bench.pixels} px, {bench.mode}, batch {bench.batch}: memory")
        try:
            weights, peak = bench.peak_memory()
            operations = bench.flops()
            bench.run()
        except Exception as error:  # out of memory, or a peer that is not installed or fails
            skipped.append(row | {"why": _reason(error)})
            bench.__dict__.pop("work", None)  # its model
            continue
        rows[key] = row | dict(weight_bytes=weights, peak_bytes=peak, operations=operations)
    rates: list[float] = []
    taken: dict[tuple[str, bool], list] = {key: [] for key in rows}
    for index in range(runs):
        for key in list(rows):
            bench = benches[key]
            progress(f"round {index + 1} of {runs}")
            if len(rates) == index:
                rates.append(matrix_rate(torch.device(bench.device), getattr(torch, bench.dtype)))
            try:
                taken[key].append(bench.seconds())
            except Exception as error:  # out of memory, next to the models of the others
                skipped.append(rows.pop(key) | {"why": _reason(error)})
                bench.__dict__.pop("work", None)
    for key, row in rows.items():
        operations = row.pop("operations")
        row.update(_summary(taken[key], operations, row["batch"], float(np.median(rates))))
    return list(rows.values()), skipped


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _summary(
    taken: Sequence[tuple[float, dict[str, float]]],
    operations: Mapping[str, float],
    batch: int,
    rate: float,
) -> dict[str, Any]:
    def figures(seconds: Iterable[float], flops: float) -> dict[str, float]:
        low, median, high = np.percentile(list(seconds), [25, 50, 75]).tolist()
        share = flops / rate / median if median else 0.0
        return dict(median=median, spread=high - low, flops=flops, share=share)

    parts = sorted({part: 0 for _, measured in taken for part in measured}, key=OTHER.__eq__)
    whole = figures((seconds for seconds, _ in taken), sum(operations.values()))
    return whole | dict(
        images_per_second=batch / whole["median"],
        matrix_rate=rate,
        parts={
            part: figures((m.get(part, 0.0) for _, m in taken), operations.get(part, 0.0))
            for part in parts
        },
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second of a large matrix product."""
    side = _MATRIX.get(device.type, 2048)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    start = _clock(device)
    a @ b
    return 2 * side**3 / (_clock(device) - start)


def device_name(device: str) -> str:
    """Returns the name of a GPU, or of the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return model[1] if model else platform.machine()


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


def free_memory(device: torch.device) -> int:
    """Returns the bytes that a new process could use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    available = re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    return 1024 * int(available[0])


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of a function of a module, called in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock(device: torch.device) -> float:
    wait_for(device)
    return time.perf_counter()


def _memory(bench: Bench) -> tuple[int, int]:
    torch.set_num_threads(bench.threads)
    model, device = bench.work.model, torch.device(bench.device)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if device.type == "cpu":
        return weights, peak_of(bench.run, device)
    before = torch.cuda.memory_allocated(device)
    bench.run()  # allocates states of the optimizer and workspaces of libraries
    return weights, peak_of(bench.run, device) + torch.cuda.memory_allocated(device) - before


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{field}:\s*(\d+)", text)[0])  # Linux gives kB
