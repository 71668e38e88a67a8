"""ONNX files: translation of an exported program, and running them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ropevit_mmdet
from ropevit_mmdet.deploy.torch_export import SCORE_THR
from ropevit_mmdet.errors import UserError

INPUT = "images"
OPSET = 18
MAX_BYTES = 2_000_000_000  # of weights; a protobuf file has at most 2 GiB
CPU = "CPUExecutionProvider"
OPENVINO = "openvino"


def to_bytes(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> bytes:
    """Returns a self-contained ONNX file with `metadata` as its text fields.

    Nodes are named after the module that they belong to, as `MODULE/OPERATOR_INDEX`.
    """
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
    for i, node in enumerate(graph.node):
        scopes = {one.key: one.value for one in node.metadata_props}
        path = ast.literal_eval(scopes.get("pkg.torch.onnx.name_scopes", "['', '']"))
        node.name = f"{path[-2] if len(path) > 1 else ''}/{node.op_type}_{i}"
    values = (*graph.input, *graph.output, *graph.value_info)
    for part in (graph, *values, *graph.node, *graph.initializer, *proto.functions):
        part.ClearField("metadata_props")  # stack traces with absolute paths
        part.ClearField("doc_string")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "ropevit_mmdet"
    proto.producer_version = ropevit_mmdet.__version__
    return proto.SerializeToString()


def metadata_of(data: bytes) -> dict[str, Any]:
    """Returns the text fields of a file of `ropevit export`."""
    import onnx

    fields = onnx.load_model_from_string(data).metadata_props
    return {field.key: json.loads(field.value) for field in fields}


def runner(data: bytes, provider: str = CPU) -> Callable[[Tensor, float | None], list[Tensor]]:
    """Returns a function that runs an ONNX file.

    It takes images, and a score threshold that replaces the file's own unless it is None.

    Args:
        provider: one of onnxruntime, or `openvino`, perhaps with its precision on a CPU: `:f32`
            (default), `:bf16` or `:f16`.

    Raises:
        UserError: the provider is not there.
    """

    @functools.cache
    def session(score_thr: float | None) -> Callable[[np.ndarray], list[np.ndarray]]:
        content = data if score_thr is None else _with_threshold(data, score_thr)
        name, _, precision = provider.partition(":")
        if name == OPENVINO:
            return _openvino(content, precision or "f32")
        return _onnxruntime(content, provider)

    check_provider(provider)
    session(None)

    def run(images: Tensor, score_thr: float | None = None) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session(score_thr)(images.numpy())]

    return run


def check_provider(provider: str) -> None:
    """Raises `UserError` or `ImportError` if a provider of `runner` is not installed."""
    if provider.partition(":")[0] == OPENVINO:
        if importlib.util.find_spec("openvino") is None:
            raise ImportError("missing openvino: pip install 'ropevit-mmdet[openvino]'")
        return
    import onnxruntime

    known = onnxruntime.get_available_providers()
    if provider not in known:
        raise UserError(f"--provider {provider}: there are {', '.join(known)} and {OPENVINO}")


def _onnxruntime(data: bytes, provider: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings of nodes that stay on the CPU
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=list({provider: 0, CPU: 0}))
    if provider not in session.get_providers():  # such as CUDA without its libraries
        raise UserError(f"--provider {provider} does not start here: the CPU would run the file")
    return lambda images: session.run(None, {INPUT: images})


def _openvino(data: bytes, precision: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision}  # by default bf16 where a CPU has it
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    compiled = core.compile_model(core.read_model(data), "CPU", settings)
    return lambda images: [np.array(one) for one in compiled([images]).values()]


def _with_threshold(data: bytes, score_thr: float) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(data)
    (constant,) = (value for value in proto.graph.initializer if value.name == SCORE_THR)
    constant.CopyFrom(onnx.numpy_helper.from_array(np.array([score_thr], np.float32), SCORE_THR))
    return proto.SerializeToString()
