"""Benchmark of detectors, whole and by part, and of backbones; the plan of a training run."""

from ropevit_mmdet.apis.benchmark.measure import (
    Bench,
    benchmark,
    count_flops,
    device_name,
    free_memory,
    in_new_process,
    measure,
    peak_of,
    wait_for,
)
from ropevit_mmdet.apis.benchmark.models import VARIANTS, Variant, check_source
from ropevit_mmdet.apis.benchmark.plan import Schedule, plan, schedule, text, training_side
from ropevit_mmdet.apis.benchmark.report import plot, table

__all__ = [
    "VARIANTS",
    "Bench",
    "Schedule",
    "Variant",
    "benchmark",
    "check_source",
    "count_flops",
    "device_name",
    "free_memory",
    "in_new_process",
    "measure",
    "peak_of",
    "plan",
    "plot",
    "schedule",
    "table",
    "text",
    "training_side",
    "wait_for",
]
