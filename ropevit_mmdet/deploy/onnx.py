"""ONNX files: translation of an exported program, and a runner on the CPU."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import ropevit_mmdet
from ropevit_mmdet.deploy.check import Run

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
    _name_sizes(proto.graph)
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


def runner(data: bytes) -> Run:
    """Returns a function that runs an ONNX file on the CPU."""
    import onnxruntime

    @cache
    def session(score_thr: float | None) -> onnxruntime.InferenceSession:
        file = data if score_thr is None else _with_threshold(data, score_thr)
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(image: Tensor, score_thr: float | None = None) -> list[Tensor]:
        outputs = session(score_thr).run(None, {INPUT: image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def _with_threshold(data: bytes, score_thr: float) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(data)
    (constant,) = (value for value in proto.graph.initializer if value.name == "score_thr")
    constant.CopyFrom(onnx.numpy_helper.from_array(torch.tensor(score_thr).numpy(), "score_thr"))
    return proto.SerializeToString()


def _name_sizes(graph) -> None:
    """Renames the dynamic sizes: height, width, and the number of detections."""
    names = dict(zip((dim.dim_param for dim in _dims(graph.input[0])[2:]), ("height", "width")))
    if count := _dims(graph.output[0])[0].dim_param:
        names[count] = "detections"
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in _dims(value):
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda match: names[match[0]], dim.dim_param)


def _dims(value):
    return value.type.tensor_type.shape.dim
