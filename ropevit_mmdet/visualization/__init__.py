"""Figures: overlays of detections, feature maps, curves of runs, and evaluation results."""

from ropevit_mmdet.visualization._figure_file import check_png, save_figure
from ropevit_mmdet.visualization.feature_maps import plot_features
from ropevit_mmdet.visualization.features import block_features
from ropevit_mmdet.visualization.overlays import contact_sheet, draw_sample
from ropevit_mmdet.visualization.results_figure import plot_confusion_matrix, plot_precision_recall
from ropevit_mmdet.visualization.run_curves import plot_runs
from ropevit_mmdet.visualization.run_log import read_run

__all__ = [
    "block_features",
    "check_png",
    "contact_sheet",
    "draw_sample",
    "plot_confusion_matrix",
    "plot_features",
    "plot_precision_recall",
    "plot_runs",
    "read_run",
    "save_figure",
]
