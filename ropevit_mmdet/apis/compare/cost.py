"""Cost of a detector at test time: parameters, operations, images per second, peak memory."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from ropevit_mmdet.apis.benchmark.measure import count_flops, in_new_process, peak_of, wait_for
from ropevit_mmdet.apis.compare.experiment import CONFIG_FILE
from ropevit_mmdet.apis.predict import Detector
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint

IMAGES = 12  # timed, after two for warm-up


def measure_costs(
    directories: Sequence[Path], progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Measures the cost of finished runs on the first GPU, else the CPU, by heading of a table.

    Times are medians over single images of the test data, interleaved over the runs. Memory is
    above the weights, in a new process per run.
    """
    progress("images per second, interleaved")
    detectors = [RunDetector(directory) for directory in directories]
    rounds = [[one.seconds(index) for one in detectors] for index in range(IMAGES + 2)]
    costs = []
    for directory, detector, taken in zip(directories, detectors, zip(*rounds[2:]), strict=True):
        progress(f"peak memory of {directory.name}")
        cost = {
            "parameters, M": sum(p.numel() for p in detector.model.parameters()) / 1e6,
            "backbone, M": sum(p.numel() for p in detector.model.backbone.parameters()) / 1e6,
            "GFLOP": detector.flops() / 1e9,
            "images/s": 1 / statistics.median(taken),
            "peak MB": in_new_process(peak_bytes, directory) / 1e6,
        }
        costs.append(cost)
    return costs


class RunDetector:
    """The detector of a finished run with the images of its test data."""

    def __init__(self, directory: Path) -> None:
        config = Config.fromfile(directory / CONFIG_FILE)
        detector = Detector(config, str(latest_checkpoint(directory)))
        self.model, self.device = detector.model, detector.device
        self.data = DATASETS.build(config.test_dataloader.dataset)

    @torch.no_grad()
    def seconds(self, index: int) -> float:
        """Returns the seconds of one image, from pixels in memory to detections."""
        batch = self._batch(index)
        wait_for(self.device)
        start = time.perf_counter()
        self.model.test_step(batch)
        wait_for(self.device)  # mmdet leaves detections on the GPU
        return time.perf_counter() - start

    @torch.no_grad()
    def flops(self) -> int:
        """Returns the operations of backbone and neck on the first image."""
        images = self.model.data_preprocessor(self._batch(0), False)["inputs"]
        return count_flops(lambda: self.model.extract_feat(images))

    def _batch(self, index: int) -> dict[str, list]:
        packed = self.data[index % len(self.data)]
        return {key: [value] for key, value in packed.items()}


def peak_bytes(directory: Path) -> int:
    """Returns the peak bytes above the weights for one image, in a new process."""
    detector = RunDetector(directory)
    return peak_of(lambda: detector.seconds(0), detector.device)
