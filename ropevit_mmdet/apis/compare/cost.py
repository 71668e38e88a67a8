"""What a detector costs at test time: parameters, operations, images per second, peak memory."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet.apis.benchmark.measure import peak_of, wait_for
from ropevit_mmdet.apis.compare.experiment import CONFIG_FILE, RESULT_FILE
from ropevit_mmdet.apis.predict import choose_device
from ropevit_mmdet.engine.config import build_detector
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint

IMAGES = 12  # timed after a warm-up of two


def measure_costs(
    directories: Iterable[Path], progress: Callable[[str], None] = lambda message: None
) -> list[dict[str, float]]:
    """The costs of trained runs, on the first GPU, else the CPU.

    Times are medians over single images of the test data, the runs taking turns; memory is
    above the weights, in a fresh process for each.

    Args:
        directories: of runs, as ``experiment.result_of`` leaves them.
    """
    progress("images per second, in turns")
    detectors = [Detector(directory) for directory in directories]
    seconds: list[list[float]] = [[] for _ in detectors]
    for turn in range(IMAGES + 2):
        for detector, taken in zip(detectors, seconds, strict=True):
            taken.append(detector.seconds(turn))
    costs = []
    for detector, taken in zip(detectors, seconds, strict=True):
        progress(f"peak memory of {detector.directory.name}")
        costs.append(
            {
                "parameters": _count(detector.model),
                "backbone_parameters": _count(detector.model.backbone),
                "gflops": detector.flops() / 1e9,
                "seconds_per_image": statistics.median(taken[2:]),
                "peak_bytes": _in_fresh_process(peak_bytes, detector.directory),
            }
        )
    return costs


def check_weights(directories: Iterable[Path]) -> None:
    """Looks for the checkpoints of those runs that are finished, before others are trained.

    Raises:
        ValueError: the costs of a run cannot be measured: its checkpoint is gone.
    """
    for directory in directories:
        if (directory / RESULT_FILE).is_file() and latest_checkpoint(directory) is None:
            raise ValueError(
                f"the run in {directory} is finished, and its checkpoint is gone: costs are measured "
                "with it, of all backbones again when one is added; put it back, or move the directory "
                "away to train the run again"
            )


class Detector:
    """The detector of a finished run and the images of its test data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        config = Config.fromfile(directory / CONFIG_FILE)
        config.model.backbone.pop("cache_dir", None)  # what an image costs, not what it cost once
        self.model = build_detector(config)
        weights = read_detector_checkpoint(str(latest_checkpoint(directory)))
        self.model.load_state_dict(weights["state_dict"])
        self.device = choose_device(None)
        self.model.to(self.device).eval()
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools speaks of every index
            self.data = DATASETS.build(config.test_dataloader.dataset)

    @torch.no_grad()
    def seconds(self, number: int) -> float:
        """The time of one image, from pixels in memory to objects."""
        batch = self._batch(number)
        wait_for(self.device)
        start = time.perf_counter()
        self.model.test_step(batch)
        wait_for(self.device)  # mmdet leaves objects where they were found
        return time.perf_counter() - start

    @torch.no_grad()
    def flops(self) -> int:
        """Operations of backbone and neck on the first image; two per multiply and add."""
        images = self.model.data_preprocessor(self._batch(0), False)["inputs"]
        return count_operations(lambda: self.model.extract_feat(images))

    def peak(self) -> int:
        """Bytes above the weights, for one image."""
        return peak_of(lambda: self.seconds(0), self.device)

    def _batch(self, number: int) -> dict[str, list[Any]]:
        packed = self.data[number % len(self.data)]
        return {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}


def count_operations(work: Callable[[], Any]) -> int:
    """Operations of the matrix products and convolutions in some work."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()  # fused attention would not be counted on a CPU
    return counter.get_total_flops()


def peak_bytes(directory: Path) -> int:
    """The peak memory of a run's detector; for a fresh process."""
    return Detector(directory).peak()


def _in_fresh_process(function: Callable[[Path], int], directory: Path) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, directory).result()


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
