"""Export of a detector, compared with PyTorch before the file is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

import ropevit_mmdet
from ropevit_mmdet._output import atomic_file, check_output_directory
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.deploy import check, onnx, torch_export
from ropevit_mmdet.deploy.detector import DynamicDetector, Normalization
from ropevit_mmdet.deploy.evaluation import Progress
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side, unsupported_features
from ropevit_mmdet.deploy.heads import graph_class, output_settings
from ropevit_mmdet.deploy.precision import to_bfloat16
from ropevit_mmdet.deploy.precision_check import PrecisionCheck
from ropevit_mmdet.errors import UserError

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aotinductor": ".pt2"}
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "torch": ("fp32", "bf16")}
PRECISIONS["aotinductor"] = PRECISIONS["torch"]


@dataclass(frozen=True)
class Request:
    """What is exported.

    Attributes:
        part: 'detector' (with decoding and NMS) or 'features' (backbone and neck).
        file_format: a key of `FORMATS`.
        size: (height, width) of all images, in pixels; None for any size.
        batch: images per call; None for any number.
        opset: of an ONNX file.
        normalize: the file takes RGB pixels, uint8, and normalizes them itself.
        pasted: masks are pasted into the images instead of boxes.
        precision: one of `PRECISIONS` of the format.
        dynamic: int8 finds the ranges of activations at every run.
        calibration: training images that give the ranges and sensitivities of lower precision.
        images: validation images that lower precision is checked on; None for all.
        provider: runs an ONNX file in the checks, as for `onnx.runner`.
    """

    part: str = "detector"
    file_format: str = "onnx"
    size: tuple[int, int] | None = None
    batch: int | None = None
    opset: int = onnx.OPSET
    normalize: bool = False
    pasted: bool = False
    precision: str = "fp32"
    dynamic: bool = False
    calibration: int = 32
    images: int | None = None
    provider: str = onnx.CPU


def export_model(
    model: Any,
    config: Config,
    class_names: Sequence[str],
    path: Path,
    request: Request,
    *,
    report: Callable[[str], None] = print,
    progress: Progress = iter,
) -> None:
    """Writes a part of a detector to `path`, for images of any size and batch, or of one.

    Args:
        model: the detector, in evaluation mode on the CPU.
        config: its config; the file describes the test pipeline.
        report: called with a line of text per step.
        progress: wraps the validation images.

    Raises:
        UserError: see `check_request`; also a model that cannot be exported.
        ImportError: a package is missing.
        RuntimeError: the graph does not compute what the model computes; nothing is written.
    """
    check_request(path, request)
    _check_model(model, request)
    metadata = metadata_of(config, model, class_names, request)
    is_lower = request.precision != "fp32"
    lower = PrecisionCheck(model, config, metadata, request, report, progress) if is_lower else None
    graph = build_graph(model, request).eval()
    report(f"tracing the {request.part}")
    program = torch_export.trace(
        to_bfloat16(graph) if request.precision == "bf16" else graph,
        example_for(model, request),
        min_side(model),
        dynamic_batch=request.batch is None,
        dynamic_size=request.size is None,
    )
    report(f"writing the {request.file_format} format")
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    data, run = _content(program, getattr(graph, "outputs", ()), texts, request)
    if lower and request.precision == "bf16":
        lower.accept(run)
    else:
        _compare(model, run, request, report)
        data = lower.reduced(data) if lower else data
    with atomic_file(path) as file:
        file.write(data)


def check_request(path: Path, request: Request) -> None:
    """Checks the arguments of an export and the installed packages before any work is done.

    Raises:
        UserError: a suffix or precision that does not fit the format, a provider that is not
            there, or a directory that cannot be written.
        ImportError: packages or a compiler are missing.
    """
    suffix, known = FORMATS[request.file_format], PRECISIONS[request.file_format]
    if path.suffix != suffix:
        raise UserError(f"{path}: files of --format {request.file_format} end in {suffix}")
    check_output_directory(path.parent)
    if request.precision not in known:
        text = f"--precision {request.precision}: --format {request.file_format} has"
        raise UserError(f"{text} {', '.join(known)}")
    packages = ("onnx", "onnxscript", "onnxruntime") if request.file_format == "onnx" else ()
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"missing {', '.join(missing)}: pip install 'ropevit-mmdet[export]'")
    if packages:
        onnx.check_provider(request.provider)
    if request.file_format == "aotinductor" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ImportError("--format aotinductor needs a C++ compiler: install g++, or set CXX")


def build_graph(model: Any, request: Request) -> Any:
    """Returns the module that is traced."""
    if request.part == "detector":
        return DynamicDetector(model, normalize=request.normalize, pasted=request.pasted)
    features = DynamicFeatures(model)
    if not request.normalize:
        return features
    return nn.Sequential(Normalization(model.data_preprocessor), features)


def example_for(model: Any, request: Request = Request()) -> torch.Tensor:
    """Images to trace with: several windows, and two cells or more at every level."""
    height, width = (max(2 * min_side(model), *sides) for sides in zip(*check.check_sizes(model)))
    size = request.size or (height + 3, width + 5)
    return check.example_images(size, request.batch or 2, pixels=request.normalize)


def metadata_of(
    config: Config, model: Any, class_names: Sequence[str], request: Request
) -> dict[str, Any]:
    """Returns the fields of a file; `mean` and `std` are in the order of `channel_order`."""
    neck, preprocessor = getattr(model, "neck", None), model.data_preprocessor
    stats = {
        key: getattr(preprocessor, key, torch.tensor(i)) for i, key in enumerate(("mean", "std"))
    }
    fields = {
        "made_by": f"ropevit_mmdet {ropevit_mmdet.__version__}, torch {torch.__version__}",
        "config": config.filename and PureWindowsPath(config.filename).name,  # knows \ and /
        "part": request.part,
        "model": type(model).__name__,
        "patch_size": model.backbone.patch_size,
        "resize": resizing(config),
        "channel_order": "RGB" if preprocessor._channel_conversion else "BGR",  # mmdet reads BGR
        **{key: value.float().flatten().expand(3).tolist() for key, value in stats.items()},
        "pad_size_divisor": preprocessor.pad_size_divisor,
        "pad_value": preprocessor.pad_value,
        "normalized_by": "file" if request.normalize else "caller",
        "precision": request.precision,
        "size": request.size,
        "batch": request.batch,
        "class_names": list(class_names),
        "strides": [model.backbone.patch_size] if neck is None else list(neck.strides),
    }
    if request.part == "detector":
        cfg = output_settings(model)
        fields["score_thr"] = cfg.get("score_thr", 0)
        fields["iou_threshold"] = cfg.get("nms", {}).get("iou_threshold")
        fields["max_per_img"] = cfg.get("max_per_img", cfg.get("max_per_image"))
        fields["mask_thr_binary"] = cfg.get("mask_thr_binary")
    return fields


def resizing(config: Config) -> dict[str, Any] | None:
    """Returns `scale` (width, height) and `keep_ratio` of a test pipeline of `Resize` only."""
    steps = get_test_pipeline_cfg(config.copy())
    steps = [step for step in steps if not type_name(step).startswith(("Load", "Pack"))]
    if not steps:
        return {"scale": None, "keep_ratio": True}
    step = {"keep_ratio": False, **steps[0]}
    is_resize = len(steps) == 1 and type_name(step) == "Resize"
    if not is_resize or step.keys() != {"type", "scale", "keep_ratio"}:
        return None
    scale = step["scale"]
    scale = [scale, scale] if isinstance(scale, int) else [int(side) for side in scale]
    return {"scale": scale, "keep_ratio": step["keep_ratio"]}


def _content(
    program: Any, outputs: Sequence[str], metadata: Mapping[str, str], request: Request
) -> tuple[bytes, check.Run]:
    """The content of a file, and what runs it."""
    if request.file_format == "onnx":
        names = outputs or [f"map{i}" for i in range(len(program.graph_signature.user_outputs))]
        data = onnx.to_bytes(program, names, metadata, request.opset)
        return data, onnx.runner(data, request.provider)
    data = torch_export.to_bytes(program, metadata)
    run = torch_export.runner(data)
    if request.file_format == "torch":
        return data, run
    data = torch_export.to_package(program, metadata)
    package = torch_export.runner(data)
    # its score threshold is compiled: where PyTorch detects nothing, the program is compared
    return data, lambda images, thr: (package if thr is None else run)(images, thr)


def _compare(model: Any, run: check.Run, request: Request, report: Callable[[str], None]) -> None:
    """Raises `RuntimeError` if a result differs from PyTorch's."""
    sizes = [request.size] if request.size else check.check_sizes(model)
    batches = [request.batch] if request.batch else check.BATCHES
    is_detector = request.part == "detector"
    compare = check.compare_detections if is_detector else check.compare_features
    for i in range(max(len(sizes), len(batches))):
        size, batch = sizes[i % len(sizes)], batches[i % len(batches)]
        images = check.example_images(size, batch, pixels=request.normalize)
        equal, text = compare(model, run, images)
        if not equal:
            raise RuntimeError(f"the exported {request.part} differs from PyTorch: {text}")
        report(f"equal to PyTorch: {text}")


def _check_model(model: Any, request: Request) -> None:
    """Raises `UserError` with everything that the graph does not support."""
    findings = unsupported_features(model)
    if request.part == "detector":
        findings += graph_class(model)[1]
    has_masks = model.with_mask or hasattr(model, "panoptic_fusion_head")
    if request.pasted and not (request.part == "detector" and has_masks):
        findings.append("--masks pasted (there are no masks)")
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    if request.file_format == "onnx" and size > onnx.MAX_BYTES:
        findings.append(f"weights of {size / 1e9:.1f} GB (use --format torch)")
    if not findings and request.size and min(request.size) < (shortest := min_side(model)):
        findings.append(f"--size {request.size[0]} {request.size[1]} (at least {shortest} pixels)")
    if findings:
        hint = "; try --part features" if request.part == "detector" else ""
        raise UserError(f"the {request.part} cannot be exported: {', '.join(findings)}{hint}")
