"""`torch.export`: tracing with dynamic batch, height and width, and .pt2 files."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (a detector's file needs its operators)
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.fx.experimental import _config as shape_config

SCORE_THR = "head.score_thr"
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


def to_package(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Returns a .pt2 file of machine code for this CPU, which C++ and Python load."""
    settings = {
        "aot_inductor.metadata": dict(metadata),
        "layout_optimization": False,  # in torch 2.15, masks of a varying number of RoIs are wrong
    }
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(directory, "package.pt2"))
        aoti_compile_and_package(program, package_path=path, inductor_configs=settings)
        return Path(path).read_bytes()


def metadata_of(data: bytes) -> dict[str, Any]:
    """Returns the metadata of a .pt2 file of `ropevit export`."""
    if _is_package(data):
        fields = _load_package(data).get_metadata()
        return {key: json.loads(value) for key, value in fields.items() if "AOTI_" not in key}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        names = [name for name in file.namelist() if "/extra/" in name]
        return {name.rpartition("/")[2]: json.loads(file.read(name)) for name in names}


def runner(data: bytes) -> Callable[[Tensor, float | None], list[Tensor]]:
    """Returns a function like `onnx.runner`'s that runs a .pt2 file on the CPU.

    The score threshold of an AOTInductor package is compiled: another one has no effect.
    """
    if _is_package(data):
        package = _load_package(data)

        def run_package(images: Tensor, score_thr: float | None = None) -> list[Tensor]:
            return list(package(images))

        return run_package
    program = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(images: Tensor, score_thr: float | None = None) -> list[Tensor]:
        if score_thr is None:
            return list(program(images))
        threshold = program.get_buffer(SCORE_THR)
        own = threshold.clone()
        threshold.fill_(score_thr)
        outputs = list(program(images))
        threshold.copy_(own)
        return outputs

    return run


def _is_package(data: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return any("aotinductor" in name for name in file.namelist())


def _load_package(data: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(data)
        file.flush()
        return aoti_load_package(file.name)
