"""Cost of a detector at test time: parameters, operations, images per second, peak memory."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from ropevit_mmdet.apis.benchmark.measure import count_flops, in_new_process, peak_of, wait_for
from ropevit_mmdet.apis.compare.experiment import CONFIG_FILE
from ropevit_mmdet.apis.detector import Detector
from ropevit_mmdet.engine.hooks import latest_checkpoint

IMAGES = 12  # timed, after two for warm-up


def measure_costs(
    directories: Sequence[Path], progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Measures the cost of finished runs on the first GPU, else the CPU, by heading of a table.

    Times are medians over single images of the test data, interleaved over the runs. Memory is
    above the weights, in a new process per run.
    """
    progress("images per second, interleaved")
    runs = [FinishedRun(directory) for directory in directories]
    rounds = [[run.seconds(index) for run in runs] for index in range(IMAGES + 2)]
    costs = []
    for directory, run, taken in zip(directories, runs, zip(*rounds[2:]), strict=True):
        progress(f"peak memory of {directory.name}")
        images = run.model.data_preprocessor(run.batch(0), False)["inputs"]
        with torch.no_grad():
            flops = count_flops(partial(run.model.extract_feat, images))
        cost = {
            "parameters, M": sum(p.numel() for p in run.model.parameters()) / 1e6,
            "backbone, M": sum(p.numel() for p in run.model.backbone.parameters()) / 1e6,
            "GFLOP": flops / 1e9,  # of backbone and neck
            "images/s": 1 / statistics.median(taken),
            "peak MB": in_new_process(peak_bytes, directory) / 1e6,
        }
        costs.append(cost)
    return costs


class FinishedRun:
    """The detector of a finished run with its test data."""

    def __init__(self, directory: Path) -> None:
        config = Config.fromfile(directory / CONFIG_FILE)
        detector = Detector(str(latest_checkpoint(directory)), config=config)
        self.model, self.device = detector.model, detector.device
        self.data = DATASETS.build(config.test_dataloader.dataset)

    def batch(self, index: int) -> dict[str, list]:
        """One image, repeated from the first one where the data ends."""
        return {key: [value] for key, value in self.data[index % len(self.data)].items()}

    @torch.no_grad()
    def seconds(self, index: int) -> float:
        """Returns the seconds of one image, from pixels in memory to detections."""
        batch = self.batch(index)
        wait_for(self.device)
        start = time.perf_counter()
        self.model.test_step(batch)
        wait_for(self.device)  # mmdet leaves detections on the GPU
        return time.perf_counter() - start


def peak_bytes(directory: Path) -> int:
    """Returns the peak bytes above the weights for one image; for a new process."""
    run = FinishedRun(directory)
    return peak_of(lambda: run.seconds(0), run.device)
