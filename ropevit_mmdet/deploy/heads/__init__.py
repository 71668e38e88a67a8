"""Detection heads as graphs: one file per family, and which of them exports a detector."""

from __future__ import annotations

from typing import Any

from ropevit_mmdet.deploy.heads.deformable_detr import DeformableDETRGraph
from ropevit_mmdet.deploy.heads.dense import DenseGraph
from ropevit_mmdet.deploy.heads.eomt import EoMTGraph
from ropevit_mmdet.deploy.heads.two_stage import TwoStageGraph

GRAPHS: tuple[Any, ...] = (DenseGraph, TwoStageGraph, DeformableDETRGraph, EoMTGraph)


def graph_class(model: Any) -> Any:
    """Returns the class of `GRAPHS` that exports a detector, None if none does."""
    return next((graph for graph in GRAPHS if graph.exports(model)), None)
