"""A report of a run, of a comparison of backbones or of results: one HTML file."""

from ropevit_mmdet.apis.report.page import write_report

__all__ = ["write_report"]
