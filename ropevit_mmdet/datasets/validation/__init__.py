"""Validation of datasets in COCO's format: the table of checks, and a report."""

from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import CHECKS, ERROR, SEVERITIES, Findings
from ropevit_mmdet.datasets.validation.config import SPLITS, CocoFiles, check_datasets, coco_files
from ropevit_mmdet.datasets.validation.report import Report, report_dataset

__all__ = [
    "CHECKS",
    "CocoFiles",
    "ERROR",
    "Findings",
    "Report",
    "SEVERITIES",
    "SPLITS",
    "check_annotations",
    "check_datasets",
    "coco_files",
    "read_annotation_file",
    "report_dataset",
]
