"""Benchmark of backbones: time, memory and floating point operations over image sizes."""

from ropevit_mmdet.apis.benchmark.measure import VARIANTS, Bench, Variant, measure, settings_of
from ropevit_mmdet.apis.benchmark.report import begin, is_measured, plot, replace_rows, table

__all__ = [
    "VARIANTS",
    "Bench",
    "Variant",
    "begin",
    "is_measured",
    "measure",
    "plot",
    "replace_rows",
    "settings_of",
    "table",
]
