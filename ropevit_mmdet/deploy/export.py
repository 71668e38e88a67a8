"""Export of a detector, compared with PyTorch before the file is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config

import ropevit_mmdet
from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.deploy import onnx, torch_export
from ropevit_mmdet.deploy.check import (
    check_sizes,
    compare_detections,
    compare_features,
    example_image,
)
from ropevit_mmdet.deploy.detector import Detections, DynamicDetector, unsupported_detector
from ropevit_mmdet.deploy.features import DynamicFeatures, min_side, unsupported_features
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
        data = onnx.to_bytes(program, Detections._fields if is_detector else maps, metadata)
        run = partial(onnx.run, data)
    else:
        data = torch_export.to_bytes(program, metadata)
        run = partial(torch_export.run, data)
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


def metadata_of(
    config: Config, model: Any, class_names: Sequence[str], part: str
) -> dict[str, str]:
    """Returns text fields, each one JSON; `mean` and `std` are in the order of `channel_order`."""
    neck, preprocessor = getattr(model, "neck", None), model.data_preprocessor
    stats = {
        key: getattr(preprocessor, key, torch.tensor(i)) for i, key in enumerate(("mean", "std"))
    }
    fields = {
        "made_by": f"ropevit_mmdet {ropevit_mmdet.__version__}, torch {torch.__version__}",
        "config": config.filename and PureWindowsPath(config.filename).name,  # knows \ and /
        "part": part,
        "model": type(model).__name__,
        "patch_size": model.backbone.patch_size,
        "resize": resizing(config),
        "channel_order": "RGB" if preprocessor._channel_conversion else "BGR",  # mmdet reads BGR
        **{key: value.float().flatten().expand(3).tolist() for key, value in stats.items()},
        "pad_size_divisor": preprocessor.pad_size_divisor,
        "pad_value": preprocessor.pad_value,
        "class_names": list(class_names),
        "strides": [model.backbone.patch_size] if neck is None else list(neck.strides),
    }
    if part == "detector":
        cfg = model.bbox_head.test_cfg
        fields["score_thr"] = cfg.get("score_thr", 0)
        fields["iou_threshold"] = cfg.nms.iou_threshold
        fields["max_per_img"] = cfg.max_per_img
    return {key: json.dumps(value) for key, value in fields.items()}


def resizing(config: Config) -> dict[str, Any] | None:
    """Returns `scale` (width, height) and `keep_ratio` of a test pipeline of `Resize` only."""
    steps = get_test_pipeline_cfg(config.copy())
    steps = [step for step in steps if not type_name(step).startswith(("Load", "Pack"))]
    if not steps:
        return {"scale": None, "keep_ratio": True}
    step = {"keep_ratio": False, **steps[0]}
    if (
        len(steps) > 1
        or type_name(step) != "Resize"
        or step.keys() != {"type", "scale", "keep_ratio"}
    ):
        return None
    scale = step["scale"]
    scale = [scale, scale] if isinstance(scale, int) else [int(side) for side in scale]
    return {"scale": scale, "keep_ratio": step["keep_ratio"]}


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
