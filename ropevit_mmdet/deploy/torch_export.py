"""`torch.export`: tracing with dynamic batch, height and width, and .pt2 files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision  # noqa: F401  (a detector's file needs its operators)
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_config

MAX_SIDE = 16384  # pixels; torch.export needs a bound


def trace(
    graph: nn.Module,
    example: Tensor,
    shortest: int,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
) -> torch.export.ExportedProgram:
    """Traces a module for images [B, 3, H, W] whose sides have `shortest` pixels or more."""
    # `backed_size_oblivious`: otherwise it is fixed whether there are one or several windows
    side = torch.export.Dim.DYNAMIC(min=shortest, max=MAX_SIDE)  # a named Dim is over-constrained
    dynamic: dict[int, Any] = {2: side, 3: side} if dynamic_size else {}
    if dynamic_batch:
        dynamic[0] = torch.export.Dim.DYNAMIC(min=1)
    oblivious = shape_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with warnings.catch_warnings(), torch.no_grad(), oblivious:
        warnings.simplefilter("ignore")
        return torch.export.export(
            graph,
            (example,),
            dynamic_shapes=(dynamic or None,),
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


def runner(data: bytes) -> Callable[[Tensor, float | None], list[Tensor]]:
    """Returns a function like `onnx.runner`'s that runs a .pt2 file."""
    program = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(images: Tensor, score_thr: float | None = None) -> list[Tensor]:
        if score_thr is None:
            return list(program(images))
        threshold = program.get_buffer("head.score_thr")
        own = threshold.clone()
        threshold.fill_(score_thr)
        outputs = list(program(images))
        threshold.copy_(own)
        return outputs

    return run
