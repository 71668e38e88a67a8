"""Comparison of backbones under one detection config: AP, cost, tables and figures."""

from ropevit_mmdet.apis.compare.cost import measure_costs
from ropevit_mmdet.apis.compare.experiment import Run, execute, mean_and_spread, result_of
from ropevit_mmdet.apis.compare.figure import plot_cost
from ropevit_mmdet.apis.compare.variants import Variant, check_base, parse_variants

__all__ = [
    "Run",
    "Variant",
    "check_base",
    "execute",
    "mean_and_spread",
    "measure_costs",
    "parse_variants",
    "plot_cost",
    "result_of",
]
