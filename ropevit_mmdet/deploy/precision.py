"""Lower precision: float16 and int8 of ONNX files, bfloat16 of torch.export.

Only layers of backbone, neck and heads change: position tables, resampling, decoding, NMS and
RoIAlign stay float32.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.detr_head import DETRHead
from mmdet.models.roi_heads import FCNMaskHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.deploy.onnx import INPUT

FLOAT, FLOAT16 = 1, 10  # of onnx.TensorProto
# A dtype of their own, or no float16 kernel in onnxruntime's converter.
_NO_FP16 = (
    "Cast Constant ConstantOfShape Resize TopK NonMaxSuppression RoiAlign Range CumSum Min Max"
)
_LAYER = re.compile(
    r"((features\.|1\.)?(backbone|neck)|head\.(head|rpn_head|box_stages|mask_stages))\.\w"
)


class Reduction:
    """An ONNX file in lower precision, with a choice of layers that stay float32.

    Args:
        data: the file in float32; nodes are named as by `onnx.to_bytes`.
        precision: 'fp16' or 'int8'.
        inputs: of the file, [B, 3, H, W], for the ranges of int8; without them, ranges are
            computed at every run and convolutions stay float32.
    """

    def __init__(self, data: bytes, precision: str, inputs: Sequence[Tensor] = ()) -> None:
        import onnx

        self.proto: Any = onnx.load_model_from_string(data)
        self.precision, self.inputs = precision, inputs
        self.types = ["Gemm", "MatMul", *(["Conv"] if inputs else [])]  # that int8 has
        nodes = [n for n in self.proto.graph.node if precision == "fp16" or n.op_type in self.types]
        self.nodes = {node.name: layer for node in nodes if (layer := layer_of(node.name))}
        self.layers = sorted(set(self.nodes.values()))
        self._directory = tempfile.TemporaryDirectory()  # the ranges stay there

    def file(self, float32: Collection[str] = ()) -> bytes:
        """Returns the file, with the layers `float32` left as they are."""
        nodes = [name for name, layer in self.nodes.items() if layer not in float32]
        proto = self._to_fp16(nodes) if self.precision == "fp16" else self._to_int8(nodes)
        proto.ClearField("metadata_props")  # onnxruntime has added its own
        proto.metadata_props.extend(self.proto.metadata_props)
        proto.metadata_props.add(key="float32_layers", value=json.dumps(sorted(float32)))
        return proto.SerializeToString()

    def _to_fp16(self, nodes: Collection[str]) -> Any:
        """onnxruntime's converter would also round what passes between float32 nodes."""
        import onnx

        proto = onnx.shape_inference.infer_shapes(self.proto)
        values = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
        floats = {one.name for one in values if one.type.tensor_type.elem_type == FLOAT}
        weights = {one.name: one for one in proto.graph.initializer if one.data_type == FLOAT}
        floats |= weights.keys()
        halves: set[str] = set()
        result: list[Any] = []
        for node in proto.graph.node:
            is_half = node.name in nodes and node.op_type not in _NO_FP16.split()
            for i, name in enumerate(node.input if is_half else ()):
                if name in floats:
                    if name not in halves and name in weights:
                        proto.graph.initializer.append(_half(weights[name]))
                    elif name not in halves:
                        result.append(_cast_node(name, f"{name}_fp16", FLOAT16))
                    halves.add(name)
                    node.input[i] = f"{name}_fp16"
            result.append(node)
            for i, name in enumerate(node.output if is_half else ()):
                if name in floats:
                    halves.add(name)
                    node.output[i] = f"{name}_fp16"
                    result.append(_cast_node(f"{name}_fp16", name, FLOAT))
        _set_nodes(proto.graph, result)
        return proto

    def _to_int8(self, nodes: Sequence[str]) -> Any:
        import onnx
        from onnxruntime import quantization as q

        path, proto = Path(self._directory.name, "int8.onnx"), copy.deepcopy(self.proto)
        options: dict[str, Any] = dict(per_channel=True, weight_type=q.QuantType.QInt8)
        options |= dict(op_types_to_quantize=self.types, nodes_to_quantize=nodes)
        inputs = iter([{INPUT: images.numpy()} for images in self.inputs])
        reader = type("Reader", (), dict(get_next=lambda _: next(inputs, None)))()
        extra = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
        logging.disable(logging.WARNING)  # advice to preprocess, from the root logger
        try:
            if self.inputs:
                options |= dict(activation_type=q.QuantType.QUInt8, extra_options=extra)
                options |= dict(calibration_cache_path=path.with_suffix(".json"))
                q.quantize_static(proto, path, reader, **options)
            else:
                q.quantize_dynamic(proto, path, **options)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


def _cast_node(source: str, target: str, dtype: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], f"{target}/Cast", to=dtype)


def _half(weight: Any) -> Any:
    import onnx

    with np.errstate(over="ignore"):  # attention masks are -inf then
        value = onnx.numpy_helper.to_array(weight).astype(np.float16)
    return onnx.numpy_helper.from_array(value, f"{weight.name}_fp16")


def _set_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Sets the nodes of a graph; those that nothing uses, and such weights, are dropped."""
    used = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    weights = [one for one in graph.initializer if one.name in used]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(node for node in nodes if used.intersection(node.output))
    graph.initializer.extend(weights)


def layer_of(node: str) -> str | None:
    """The layer that a node belongs to, such as a block of the backbone; None: not a layer's."""
    path = node.partition("/")[0]
    return re.sub(r"(\.\d+)\..*", r"\1", path) if _LAYER.match(path) else None


def to_bfloat16(graph: nn.Module) -> nn.Module:
    """Returns a copy that computes features and heads in bfloat16, and the rest in float32."""
    graph = copy.deepcopy(graph)
    parts = (DynamicFeatures, BaseDenseHead, BBoxHead, FCNMaskHead)
    for module in graph.modules():
        if isinstance(module, parts) and not isinstance(module, DETRHead):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(lambda _, args: _cast(args, torch.bfloat16))
            module.register_forward_hook(lambda _, __, output: _cast(output, torch.float32))
    return graph


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, and those in plain lists and tuples, as `dtype`."""
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if type(values) in (list, tuple):
        return type(values)(_cast(value, dtype) for value in values)
    return values
