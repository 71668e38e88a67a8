"""ONNX files: translation of an exported program, and running them on the CPU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ropevit_mmdet

INPUT = "images"
OPSET = 18
SCORE_THR = "head.score_thr"
MAX_BYTES = 2_000_000_000  # of weights; a protobuf file has at most 2 GiB


def to_bytes(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> bytes:
    """Returns a self-contained ONNX file with `metadata` as its text fields."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
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


def runner(data: bytes) -> Callable[[Tensor, float | None], list[Tensor]]:
    """Returns a function that runs an ONNX file on the CPU.

    It takes images, and a score threshold that replaces the file's own unless it is None.
    """
    import onnxruntime

    @functools.cache
    def session(score_thr: float | None) -> Any:
        content = data if score_thr is None else _with_threshold(data, score_thr)
        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor, score_thr: float | None = None) -> list[Tensor]:
        outputs = session(score_thr).run(None, {INPUT: images.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def _with_threshold(data: bytes, score_thr: float) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(data)
    (constant,) = (value for value in proto.graph.initializer if value.name == SCORE_THR)
    constant.CopyFrom(onnx.numpy_helper.from_array(np.float32([score_thr]), SCORE_THR))
    return proto.SerializeToString()
