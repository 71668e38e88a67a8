"""Lower precision: float16 and int8 of ONNX files, bfloat16 of torch.export.

Only layers of backbone, neck and heads change: position tables, resampling, decoding, NMS and
RoIAlign stay float32. If the check fails, layers return to float32, the most sensitive first.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.detr_head import DETRHead
from mmdet.models.roi_heads import FCNMaskHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.deploy.onnx import INPUT

MAX_DROP = {"fp16": 0.002, "bf16": 0.005, "int8": 0.01}  # of AP
MAX_ERROR = {"fp16": 0.01, "bf16": 0.03, "int8": 0.15}  # of feature maps, relative, Euclidean norm
QUANTIZED = ["Conv", "Gemm", "MatMul"]
_LAYER = re.compile(r"(features\.\w+|head\.(head|rpn_head|box_stages|mask_stages))\.\w")


class Reduction:
    """An ONNX file in lower precision, with a choice of layers that stay float32.

    Args:
        data: the file in float32; nodes are named as by `onnx.to_bytes`.
        precision: 'fp16' or 'int8'.
        inputs: inputs of the file [B, 3, H, W] that give the ranges of int8 activations; without
            them, ranges are computed at every run and convolutions stay float32.
    """

    def __init__(self, data: bytes, precision: str, inputs: Sequence[Tensor] = ()) -> None:
        import onnx

        self.proto: Any = onnx.load_model_from_string(data)
        self.precision, self.inputs = precision, inputs
        self.quantized = QUANTIZED if inputs else ["Gemm", "MatMul"]
        self.layers = sorted({layer for node in self._nodes() if (layer := layer_of(node.name))})
        self._directory = tempfile.TemporaryDirectory()  # the ranges stay there

    def file(self, float32: Collection[str] = ()) -> bytes:
        """Returns the file, with the layers `float32` left as they are."""
        chosen = set(self.layers) - set(float32)
        nodes = [node.name for node in self._nodes() if layer_of(node.name) in chosen]
        proto = self._to_fp16(nodes) if self.precision == "fp16" else self._to_int8(nodes)
        proto.ClearField("metadata_props")  # onnxruntime has added its own
        proto.metadata_props.extend(self.proto.metadata_props)
        proto.metadata_props.add(key="float32_layers", value=json.dumps(sorted(float32)))
        return proto.SerializeToString()

    def sensitivity(self, loss: Callable[[bytes], float]) -> list[str]:
        """The layers in the order of what the loss of the file is if one of them is float32."""
        losses = {layer: loss(self.file([layer])) for layer in self.layers}
        return sorted(self.layers, key=lambda layer: losses[layer])

    def _nodes(self) -> list[Any]:
        return [
            node
            for node in self.proto.graph.node
            if self.precision == "fp16" or node.op_type in self.quantized
        ]

    def _to_fp16(self, nodes: Collection[str]) -> Any:
        from onnxruntime.transformers import float16, onnx_model

        kept = [node.name for node in self.proto.graph.node if node.name not in set(nodes)]
        proto = copy.deepcopy(self.proto)
        proto = float16.convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept)
        model = onnx_model.OnnxModel(proto)
        model.topological_sort()
        return model.model

    def _to_int8(self, nodes: Sequence[str]) -> Any:
        import onnx
        from onnxruntime import quantization as q

        path = Path(self._directory.name, "int8.onnx")
        shared: Any = dict(per_channel=True, weight_type=q.QuantType.QInt8)
        shared |= dict(op_types_to_quantize=self.quantized, nodes_to_quantize=nodes)
        logging.disable(logging.WARNING)  # advice to preprocess, from the root logger
        try:
            if not self.inputs:
                q.quantize_dynamic(copy.deepcopy(self.proto), path, **shared)
            else:
                q.quantize_static(
                    copy.deepcopy(self.proto),
                    path,
                    _Reader(self.inputs),
                    activation_type=q.QuantType.QUInt8,
                    extra_options={
                        "MatMulConstBOnly": True,
                        "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                    },
                    calibration_cache_path=path.with_suffix(".json"),
                    **shared,
                )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


class _Reader:
    """What `quantize_static` reads inputs from."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.rest = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        return next(({INPUT: images.numpy()} for images in self.rest), None)


def layer_of(node: str) -> str | None:
    """The layer that a node belongs to, such as a block of the backbone; None: not a layer's."""
    path = node.partition("/")[0]
    if not _LAYER.match(path):
        return None
    return re.sub(r"(\.\d+)\..*", r"\1", path)


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
