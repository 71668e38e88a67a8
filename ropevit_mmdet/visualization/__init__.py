"""Figures: overlays of detections, feature maps, curves of runs, and evaluation results."""

from ropevit_mmdet.visualization._figure_file import COLORS, check_png, line_style, save_figure
from ropevit_mmdet.visualization.feature_maps import MAX_ROWS, ImageFeatures, plot_features
from ropevit_mmdet.visualization.features import BlockFeatures, block_features, principal_colors
from ropevit_mmdet.visualization.overlays import contact_sheet, draw_sample
from ropevit_mmdet.visualization.results_figure import plot_confusion_matrix, plot_precision_recall
from ropevit_mmdet.visualization.run_curves import plot_runs
from ropevit_mmdet.visualization.run_log import RunLog, elapsed_seconds, read_run

__all__ = [
    "COLORS",
    "BlockFeatures",
    "ImageFeatures",
    "MAX_ROWS",
    "RunLog",
    "block_features",
    "check_png",
    "contact_sheet",
    "draw_sample",
    "elapsed_seconds",
    "line_style",
    "plot_confusion_matrix",
    "plot_features",
    "plot_precision_recall",
    "plot_runs",
    "principal_colors",
    "read_run",
    "save_figure",
]
