"""Detection heads as graphs: one file per family, and which of them exports a detector.

A graph's `unsupported(model)` lists what it does not support, None for detectors of other families.
"""

from __future__ import annotations

from typing import Any

from ropevit_mmdet.deploy.heads.deformable_detr import DeformableDETRGraph
from ropevit_mmdet.deploy.heads.dense import DenseGraph
from ropevit_mmdet.deploy.heads.eomt import EoMTGraph
from ropevit_mmdet.deploy.heads.two_stage import TwoStageGraph

GRAPHS: tuple[Any, ...] = (DenseGraph, TwoStageGraph, DeformableDETRGraph, EoMTGraph)


def graph_class(model: Any) -> tuple[Any, list[str]]:
    """Returns the class of `GRAPHS` that exports a detector, or None, and what is unsupported."""
    for graph in GRAPHS:
        if (findings := graph.unsupported(model)) is not None:
            return graph, findings
    head = type(getattr(model, "bbox_head", None)).__name__
    known = ", ".join(one.__name__.removesuffix("Graph") for one in GRAPHS)
    return None, [f"{type(model).__name__} with {head} (only {known})"]


def output_settings(model: Any) -> Any:
    """Returns the `test_cfg` of a detector's last step, with `score_thr`, NMS and `max_per_img`."""
    names = ("panoptic_fusion_head", "roi_head", "bbox_head")
    return next(getattr(model, name) for name in names if getattr(model, name, None)).test_cfg
