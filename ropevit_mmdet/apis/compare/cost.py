"""Cost of a detector at test time: parameters, operations, images per second, peak memory."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from ropevit_mmdet.apis.benchmark.measure import Bench
from ropevit_mmdet.apis.benchmark.models import Work, updater
from ropevit_mmdet.apis.benchmark.parts import PartMeter
from ropevit_mmdet.apis.compare.experiment import CONFIG_FILE
from ropevit_mmdet.apis.detector import Detector, choose_device, collate
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
    settings: dict = dict(device=str(choose_device(None)), threads=torch.get_num_threads())
    benches = [Bench(partial(finished, one), pixels=0, **settings) for one in directories]
    rounds = [[bench.seconds()[0] for bench in benches] for _ in range(IMAGES + 2)]
    costs = []
    for directory, bench, taken in zip(directories, benches, zip(*rounds[2:]), strict=True):
        progress(f"peak memory of {directory.name}")
        model: Any = bench.work.model
        flops = bench.flops()
        cost = {
            "parameters, M": sum(p.numel() for p in model.parameters()) / 1e6,
            "backbone, M": sum(p.numel() for p in model.backbone.parameters()) / 1e6,
            "GFLOP": (flops["backbone"] + flops.get("neck", 0)) / 1e9,
            "images/s": 1 / statistics.median(taken),
            "peak MB": bench.peak_memory()[1] / 1e6,
        }
        costs.append(cost)
    return costs


def finished(directory: Path, bench: Bench) -> Work:
    """The detector of a finished run, and its test images one by one, from the first again."""
    config = Config.fromfile(directory / CONFIG_FILE)
    checkpoint = str(latest_checkpoint(directory) or config.load_from)  # the latter of a test
    model = Detector(checkpoint, config=config, device=bench.device).model
    data, meter = DATASETS.build(config.test_dataloader.dataset), PartMeter()
    meter.attach_detector(model, training=False, compiled=False)
    images = (data[index] for index in itertools.cycle(range(len(data))))
    batch = (collate([image]) for image in images)
    return Work(
        model, partial(next, batch), model.test_step, model.loss, updater(None, meter), meter
    )
