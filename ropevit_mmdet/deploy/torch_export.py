"""`torch.export`: tracing with dynamic height and width, and .pt2 files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_config

MAX_SIDE = 16384  # pixels; torch.export needs a bound


def trace(graph: nn.Module, example: Tensor, shortest: int) -> torch.export.ExportedProgram:
    """Traces a module for one image whose sides have `shortest` pixels or more."""
    # `backed_size_oblivious`: otherwise it is fixed whether there are one or several windows
    side = torch.export.Dim.DYNAMIC(min=shortest, max=MAX_SIDE)  # a named Dim is over-constrained
    oblivious = shape_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with warnings.catch_warnings(), torch.no_grad(), oblivious:
        warnings.simplefilter("ignore")
        return torch.export.export(
            graph,
            (example,),
            dynamic_shapes=({2: side, 3: side},),
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def to_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Returns a .pt2 file; each metadata field is an extra file of that name."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # has absolute paths in it
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


@torch.no_grad()
def run(data: bytes, image: Tensor, score_thr: float | None = None) -> list[Tensor]:
    """Runs a .pt2 file of backbone and neck."""
    return list(torch.export.load(io.BytesIO(data)).module()(image))
