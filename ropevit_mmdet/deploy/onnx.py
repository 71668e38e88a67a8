"""ONNX files: translation of an exported program, and running them on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import ropevit_mmdet

INPUT = "images"
MAX_BYTES = 2_000_000_000  # of weights; a protobuf file has at most 2 GiB


def to_bytes(
    program: torch.export.ExportedProgram, outputs: Sequence[str], metadata: Mapping[str, str]
) -> bytes:
    """Returns a self-contained ONNX file with `metadata` as its text fields."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=[INPUT],
            output_names=list(outputs),
        )
    proto = exported.model_proto
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for part in (graph, *values, *graph.node, *graph.initializer, *proto.functions):
        part.ClearField("metadata_props")  # stack traces with absolute paths
        part.ClearField("doc_string")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "ropevit_mmdet"
    proto.producer_version = ropevit_mmdet.__version__
    return proto.SerializeToString()


def run(data: bytes, image: Tensor, score_thr: float | None = None) -> list[Tensor]:
    """Runs an ONNX file on the CPU, with the file's own score threshold or another one."""
    import onnx
    import onnxruntime

    if score_thr is not None:
        proto = onnx.load_model_from_string(data)
        (constant,) = (value for value in proto.graph.initializer if value.name == "score_thr")
        threshold = torch.tensor(score_thr).numpy()
        constant.CopyFrom(onnx.numpy_helper.from_array(threshold, "score_thr"))
        data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {INPUT: image.numpy()})]
