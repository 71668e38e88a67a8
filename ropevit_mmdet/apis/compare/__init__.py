"""Comparison of backbones under one detection config: AP, cost, table and figures."""

from ropevit_mmdet.apis.compare.cost import measure_costs
from ropevit_mmdet.apis.compare.experiment import Run, check_directories, result_of
from ropevit_mmdet.apis.compare.report import markdown, plot_cost, rows_of
from ropevit_mmdet.apis.compare.variants import check_base, parse_variants

__all__ = [
    "Run",
    "check_base",
    "check_directories",
    "markdown",
    "measure_costs",
    "parse_variants",
    "plot_cost",
    "result_of",
    "rows_of",
]
