"""Export a detector, check what came out, and only then write the file."""

from __future__ import annotations

import inspect
import io
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine import fileio
from mmengine.config import Config
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_reasoning

import ropevit_mmdet
from ropevit_mmdet.apis.predict import Predictor
from ropevit_mmdet.deploy.check import (
    Run,
    check_detections,
    check_features,
    check_sizes,
    example_image,
)
from ropevit_mmdet.deploy.detector import Detections, DynamicDetector, check_detector
from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.deploy.metadata import file_facts

PARTS = ("detector", "features")
FORMATS = ("onnx", "torch")
INPUT = "images"
OPSET = 18
LONGEST_SIDE = 16384  # pixels; torch.export wants a bound
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_LARGEST_ONNX = 2_000_000_000  # bytes of weights; protobuf ends at 2 GiB

_NEEDED = "prefer_deferred_runtime_asserts_over_guards"  # a late argument of torch.export.export

Say = Callable[[str], None]


def export(
    predictor: Predictor, config: Config, path: Path, *, part: str, kind: str, say: Say
) -> None:
    """Write a part of a detector to `path`.

    Args:
        part: one of PARTS.
        kind: one of FORMATS.
        say: hears what is continuing, a line at a time.

    Raises:
        ValueError: a detector that cannot be exported, a wrong suffix, or a graph that does not
            compute what the model does; nothing is written.
        ImportError: packages that are missing, with the line that installs them.
    """
    check_request(path, kind)
    model = predictor.model
    if part == "detector":
        check_detector(model)
        if kind == "torch":
            raise ValueError("--format torch takes backbone and neck alone: --part features")
        graph, outputs = DynamicDetector(model), list(Detections._fields)
    else:
        graph = DynamicFeatures(model)
        outputs = [f"map{i}" for i in range(graph.num_maps)]
    size = sum(value.numel() * value.element_size() for value in graph.parameters())
    if kind == "onnx" and size > _LARGEST_ONNX:
        raise ValueError(
            f"weights of {size / 1e9:.1f} GB do not fit into one ONNX file, which ends at 2 GB; "
            "--format torch takes them, without decoding and NMS"
        )
    facts = file_facts(config, model, predictor.names, part)
    say(f"tracing the {part}")
    program = trace(graph.eval(), _example(model), shortest_side(model))
    if kind == "onnx":
        say("translating to ONNX")
        data = onnx_bytes(program, outputs, facts)
        run = onnx_runner(data)
    else:
        data = torch_bytes(program, facts)
        run = torch_runner(data)
    check = check_detections if part == "detector" else check_features
    for line in check(model, run, check_sizes(model)):
        say(f"checked against PyTorch, {line}")
    fileio.put(data, path)  # written beside and renamed


def check_request(path: Path, kind: str) -> None:
    """Raise what is wrong with a path or the installed packages, before the work begins."""
    if path.suffix != _SUFFIXES[kind]:
        raise ValueError(f"{path}: files of --format {kind} end in {_SUFFIXES[kind]}")
    if path.is_dir():
        raise ValueError(f"{path} is a directory")
    if _NEEDED not in inspect.signature(torch.export.export).parameters:
        raise ImportError(f"export needs a newer PyTorch than {torch.__version__}: tried with 2.15")
    packages = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files need {' and '.join(missing)}: pip install 'ropevit-mmdet[export]', or "
            f"pip install {' '.join(missing)}"
        )


def trace(graph: nn.Module, example: Tensor, shortest: int) -> torch.export.ExportedProgram:
    """`torch.export` with dynamic height and width, of `shortest` pixels and more, for one image.

    Without its guesses at sizes of 0 and 1 the program would be that of the example's number of
    windows: one, or several.
    """
    side = torch.export.Dim.DYNAMIC(min=shortest, max=LONGEST_SIDE)  # a named Dim solves too much
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with shape_reasoning.patch(backed_size_oblivious=True):
            return torch.export.export(
                graph,
                (example,),
                dynamic_shapes=({2: side, 3: side},),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )


def onnx_bytes(
    program: torch.export.ExportedProgram, outputs: list[str], facts: Mapping[str, str]
) -> bytes:
    """An ONNX file in one piece, with `facts` as its text fields."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
        ).model_proto
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    _tidy(proto)
    return proto.SerializeToString()


def torch_bytes(program: torch.export.ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """A .pt2 file; the facts stand in it as files of their names."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


def onnx_runner(data: bytes) -> Run:
    """Runs an ONNX file on the CPU."""
    import onnxruntime

    @cache
    def session(score_thr: float | None) -> onnxruntime.InferenceSession:
        file = data if score_thr is None else _with_threshold(data, score_thr)
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(image: Tensor, score_thr: float | None = None) -> list[Tensor]:
        outputs = session(score_thr).run(None, {INPUT: image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def torch_runner(data: bytes) -> Run:
    """Runs a .pt2 file of backbone and neck."""
    module = torch.export.load(io.BytesIO(data)).module()

    def run(image: Tensor, score_thr: float | None = None) -> list[Tensor]:
        assert score_thr is None, "maps have no scores"
        with torch.no_grad():
            return list(module(image))

    return run


def shortest_side(model: nn.Module) -> int:
    """Pixels of a side from which on every map has more than one cell along it."""
    neck = getattr(model, "neck", None)
    return model.backbone.patch_size + 1 if neck is None else int(max(neck.own_strides)) + 1


def _example(model: nn.Module) -> Tensor:
    """An image to trace with, of several windows and of two cells and more at every level."""
    least = 2 * shortest_side(model)
    height, width = (max(least, *sides) for sides in zip(*check_sizes(model)))
    return example_image((height + 3, width + 5))


def _with_threshold(data: bytes, score_thr: float) -> bytes:
    """A detector's ONNX file with another score threshold."""
    import onnx

    proto = onnx.load_model_from_string(data)
    (constant,) = (one for one in proto.graph.initializer if one.name == "score_thr")
    changed = onnx.numpy_helper.from_array(torch.tensor(score_thr).numpy(), constant.name)
    constant.CopyFrom(changed)
    return proto.SerializeToString()


def _tidy(proto) -> None:
    """Name the free sizes, and take out the exporter's notes: they hold paths of this machine."""
    graph = proto.graph
    height, width = (dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim[2:])
    names = {height: "height", width: "width"}
    count = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    if count:
        names[count] = "detections"
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    values = (*graph.input, *graph.output, *graph.value_info)
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda match: names[match[0]], dim.dim_param)
    for noted in (graph, *values, *graph.node, *graph.initializer, *proto.functions):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    proto.producer_name = "ropevit_mmdet"
    proto.producer_version = ropevit_mmdet.__version__
