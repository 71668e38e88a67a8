"""Export of a detector, compared with PyTorch before the file is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.deploy import onnx, torch_export
from ropevit_mmdet.deploy.check import (
    check_sizes,
    compare_detections,
    compare_features,
    example_image,
)
from ropevit_mmdet.deploy.detector import Detections, DynamicDetector, unsupported_detector
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side, unsupported_features
from ropevit_mmdet.deploy.metadata import metadata_of
from ropevit_mmdet.errors import UserError

PARTS = ("detector", "features")
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


def export_model(
    model: Any,
    config: Config,
    class_names: Sequence[str],
    path: Path,
    *,
    part: str,
    file_format: str,
    report: Callable[[str], None] = print,
) -> None:
    """Writes a part of a detector to `path`, for images of any height and width.

    Args:
        model: the detector, in evaluation mode on the CPU.
        config: its config; the file describes the test pipeline.
        part: 'detector' (RetinaNet with decoding and NMS) or 'features' (backbone and neck).
        file_format: a key of `FORMATS`.
        report: called with a line of text per step.

    Raises:
        UserError: see `check_request`; also a model that cannot be exported.
        ImportError: a package is missing.
        RuntimeError: the graph does not compute what the model computes; nothing is written.
    """
    check_request(path, part, file_format)
    _check_model(model, part, file_format)
    is_detector = part == "detector"
    graph = DynamicDetector(model) if is_detector else DynamicFeatures(model)
    compare = compare_detections if is_detector else compare_features
    report(f"tracing the {part}")
    program = torch_export.trace(graph.eval(), example_for(model), min_side(model))
    metadata = metadata_of(config, model, class_names, part)
    if file_format == "onnx":
        report("translating to ONNX")
        maps = [f"map{i}" for i in range(len(program.graph_signature.user_outputs))]
        outputs = Detections._fields if is_detector else maps
        data = onnx.to_bytes(program, outputs, metadata)
        run = onnx.runner(data)
    else:
        data = torch_export.to_bytes(program, metadata)
        run = torch_export.runner(data)
    for size in check_sizes(model):
        equal, text = compare(model, run, size)
        if not equal:
            raise RuntimeError(f"the exported {part} differs from PyTorch: {text}")
        report(f"equal to PyTorch: {text}")
    with atomic_file(path) as file:
        file.write(data)


def check_request(path: Path, part: str, file_format: str) -> None:
    """Checks the arguments of an export and the installed packages before any work is done.

    Raises:
        UserError: a suffix that does not fit the format, or a format that the part does not have.
        ImportError: packages are missing.
    """
    if path.suffix != FORMATS[file_format]:
        raise UserError(f"{path}: files of --format {file_format} end in {FORMATS[file_format]}")
    if part == "detector" and file_format == "torch":
        raise UserError("--format torch exports only backbone and neck: --part features")
    packages = ("onnx", "onnxscript", "onnxruntime") if file_format == "onnx" else ()
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"missing {', '.join(missing)}: pip install 'ropevit-mmdet[export]'")


def example_for(model: Any) -> torch.Tensor:
    """An image to trace with: several windows, and two cells or more at every level."""
    height, width = (max(2 * min_side(model), *sides) for sides in zip(*check_sizes(model)))
    return example_image((height + 3, width + 5))


def _check_model(model: Any, part: str, file_format: str) -> None:
    """Raises `UserError` with everything that the graph does not support."""
    findings = unsupported_features(model)
    if part == "detector":
        findings += unsupported_detector(model)
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    if file_format == "onnx" and size > onnx.MAX_BYTES:
        findings.append(f"weights of {size / 1e9:.1f} GB (use --format torch --part features)")
    if findings:
        hint = "; try --part features" if part == "detector" else ""
        raise UserError(f"the {part} cannot be exported: {', '.join(findings)}{hint}")
