"""Export a detector, check what came out, and only then write the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine import fileio
from mmengine.config import Config
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes

from ropevit_mmdet.predict import Predictor

from .check import Run, check_detections, check_features, check_sizes, example_picture
from .detector import Detections, DynamicDetector, check_detector
from .features import DynamicFeatures
from .metadata import file_facts

PARTS = ("detector", "features")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
INPUT = "images"
OPSET = 18
LONGEST_SIDE = 16384  # pixels; torch.export asks for a bound
_LARGEST_ONNX = 2**31 - 1  # bytes of a file without a second one beside it

Say = Callable[[str], None]


def export(
    predictor: Predictor, config: Config, path: Path, *, part: str, kind: str, say: Say
) -> None:
    """Write the `part` of a detector, 'detector' or 'features', to `path`, of `kind` 'onnx' or
    'torch'.

    `say` hears what is going on, a line at a time. Raises ValueError, with nothing written, for a
    detector that cannot be exported, a wrong suffix, and a graph that does not compute what the
    model does; ImportError for packages that are missing.
    """
    check_request(path, kind)
    model = predictor.model
    if part == "detector":
        check_detector(model)
        if kind == "torch":
            raise ValueError("--format torch exports backbone and neck: add --part features")
        graph, outputs = DynamicDetector(model), list(Detections._fields)
    else:
        graph = DynamicFeatures(model)
        outputs = [f"map{i}" for i in range(len(model.backbone.out_indices))]
        if graph.neck is not None:
            outputs = [f"level{i}" for i in range(len(model.neck.strides))]
    facts = file_facts(config, model, predictor.names, part)
    say(f"tracing {part}")
    program = trace(graph.eval(), _example(model), shortest_side(model))
    if kind == "onnx":
        data = onnx_bytes(program, outputs, facts)
        run = onnx_runner(data)
    else:
        data = torch_bytes(program, facts)
        run = torch_runner(data)
    check = check_detections if part == "detector" else check_features
    for line in check(model, run, check_sizes(model)):
        say(line)
    fileio.put(data, path)


def check_request(path: Path, kind: str) -> None:
    """Raise what is wrong with a path or the installed packages, before the work begins."""
    if path.suffix != SUFFIXES[kind]:
        raise ValueError(f"{path}: a file of --format {kind} is named *{SUFFIXES[kind]}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    packages = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"exporting to ONNX needs {' and '.join(missing)}: pip install onnx onnxscript "
            "onnxruntime"
        )


def trace(graph: nn.Module, example: Tensor, shortest: int) -> torch.export.ExportedProgram:
    """`torch.export` with dynamic height and width, for one picture at a time.

    `shortest`: pixels of the shortest side that the program takes. Sizes are reasoned about as if
    none were 1, since the graph would otherwise be that of the example's number of windows.
    """
    sides = [
        torch.export.Dim(name, min=shortest, max=LONGEST_SIDE) for name in "height width".split()
    ]
    with warnings.catch_warnings(), torch.no_grad(), shapes.patch(backed_size_oblivious=True):
        warnings.simplefilter("ignore")
        return torch.export.export(
            graph,
            (example,),
            dynamic_shapes=({2: sides[0], 3: sides[1]},),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def onnx_bytes(
    program: torch.export.ExportedProgram, outputs: list[str], facts: Mapping[str, str]
) -> bytes:
    """An ONNX file in one piece, with `facts` as its text fields."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
        )
    proto = onnx_program.model_proto
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "ropevit_mmdet"
    if proto.ByteSize() > _LARGEST_ONNX:
        raise ValueError(
            "weights of more than 2 GB do not fit into one ONNX file; --format torch takes them"
        )
    return proto.SerializeToString()


def torch_bytes(program: torch.export.ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """A .pt2 file; the facts stand in it as files of their names."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


def onnx_runner(data: bytes) -> Run:
    """Runs an ONNX file on the CPU."""
    import onnxruntime

    def run(picture: Tensor, score_thr: float | None) -> list[Tensor]:
        options = onnxruntime.SessionOptions()
        if score_thr is not None:
            value = torch.tensor(score_thr).numpy()
            value = onnxruntime.OrtValue.ortvalue_from_numpy(value)
            options.add_initializer("score_thr", value)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return [torch.from_numpy(x) for x in session.run(None, {INPUT: picture.numpy()})]

    return run


def torch_runner(data: bytes) -> Run:
    """Runs a .pt2 file."""
    module = torch.export.load(io.BytesIO(data)).module()

    def run(picture: Tensor, score_thr: float | None) -> list[Tensor]:
        with torch.no_grad():
            return list(module(picture))

    return run


def shortest_side(model: nn.Module) -> int:
    """Pixels of a side from which on every map has more than one cell along it."""
    neck = getattr(model, "neck", None)
    return model.backbone.patch_size + 1 if neck is None else int(max(neck.own_strides)) + 1


def _example(model: nn.Module) -> Tensor:
    """A picture to trace with: several windows and no whole number of them, along both axes.

    It is larger than all that the smallest level of the pyramid rounds to one cell.
    """
    height, width = (max(sides) for sides in zip(*check_sizes(model)))
    return example_picture((height + 3, width + 5))
