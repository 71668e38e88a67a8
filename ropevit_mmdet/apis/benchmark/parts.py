"""Attributes what a step of a detector costs to its parts: seconds, or operations.

Modules and methods of mmdet's detectors are wrapped by name, as are those of torchvision and
birder. What a part calls of another part counts for the other one, so parts add up to the step.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

OTHER = "other"
DECODING, LOSS, PASTING = "decoding and NMS", "loss", "mask pasting"
# What `--compile` compiles.
_COMPILED = {"backbone", "neck", "RPN", "dense head", "box head", "mask head"}
_ROI_HEAD = r"roi_head\.\w+_head(\.\d+)?"
# Path of a module (regular expression), its methods, where "()" is its call, and the part; the
# first entry counts. Two parts are those of a training step and of a prediction.
_PARTS = (
    ("data_preprocessor|transform", "()", "preprocessing"),
    ("", "last_blocks", "backbone"),  # of EoMT
    ("backbone", "() detection_features", "backbone"),
    (r"neck|backbone(_with_fpn)?\.fpn", "()", "neck"),
    (r"rpn_head|rpn\.head", "()", "RPN"),
    ("", "pre_transformer forward_encoder", "encoder"),
    ("", "pre_decoder forward_decoder", "decoder"),
    ("mask_head|panoptic_fusion_head", "predict predict_by_feat", PASTING),
    (r"(?!roi_)\w*head", "()", "dense head"),
    (r"(?!roi_)\w*head", "predict predict_by_feat", DECODING),
    (r"(?!roi_)\w*head", "loss loss_and_predict loss_by_feat", LOSS),
    (r"roi_head\.\w*roi_extractor(\.\d+)?|roi_heads\.\w+_roi_pool", "()", "RoI pooling"),
    (r"roi_head\.(bbox|shared)_head(\.\d+)?|roi_heads\.box_(head|predictor)", "()", "box head"),
    (rf"{_ROI_HEAD}|roi_heads\.mask_(head|predictor)", "()", "mask head"),
    (r"roi_head\.mask_head(\.\d+)?", "predict_by_feat", PASTING),
    (_ROI_HEAD, "predict_by_feat refine_bboxes", DECODING),
    (_ROI_HEAD, "loss loss_and_target", LOSS),
    ("roi_head", "loss", LOSS),
    ("roi_head", "predict", DECODING),
    ("|rpn", "parse_losses compute_loss assign_targets_to_anchors", LOSS),
    ("transform", "postprocess", PASTING),
    ("rpn|anchor_generator", "()", DECODING),
    ("", "postprocess_detections", DECODING),
    ("roi_heads", "()", f"{LOSS}|{DECODING}"),
)


class PartMeter:
    """Measures parts of a step by what a reading, such as a clock, grows by while they run."""

    def __init__(self) -> None:
        self._reading: Callable[[], float] | None = None
        self._last = 0.0
        self._running: list[str] = []
        self._totals: dict[str, float] = {}

    def measure(
        self, reading: Callable[[], float] | None, step: Callable[[], object]
    ) -> dict[str, float]:
        """Runs a step; returns the growth by part. Without a reading only runs it."""
        self._reading, self._running, self._totals = reading, [OTHER], defaultdict(float)
        try:
            if reading:
                self._last = reading()
            step()
            self._mark()
        finally:
            self._reading = None
        return dict(self._totals)

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls count for a part."""

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if self._reading is None:
                return function(*args, **kwargs)
            self._mark()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._mark()
                self._running.pop()

        return measured

    def attach(self, owner: object, methods: str, part: str) -> None:
        """Wraps methods of an object."""
        for name in methods.split():
            setattr(owner, name, self.wrap(part, getattr(owner, name)))

    def attach_detector(self, model: nn.Module, *, training: bool, compiled: bool) -> None:
        """Wraps the parts of a detector, and compiles its networks first where asked."""
        inlined: list[str] = []  # modules within compiled ones
        for path, module, name, parts in _found(model):
            part = parts.split("|")[0 if training else -1]
            if path.startswith(tuple(inlined)):
                continue
            function: Any = getattr(module, name, None)
            if name == "()":
                function = module._compiled_call_impl or module._call_impl
            if compiled and part in _COMPILED:
                function = torch.compile(function)
                inlined += [f"{path}."] if name == "()" else []
            name = "_compiled_call_impl" if name == "()" else name
            setattr(module, name, self.wrap(part, function))

    def _mark(self) -> None:
        if self._reading is not None:
            now = self._reading()
            self._totals[self._running[-1]] += now - self._last
            self._last = now


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, str]]:
    """Path, module, method and part of what a model has of the table, outer modules first."""
    seen = set()
    for path, module in model.named_modules():
        for pattern, methods, part in _PARTS:
            if not re.fullmatch(pattern, path):
                continue
            for name in methods.split():
                if (path, name) not in seen and (name == "()" or hasattr(module, name)):
                    seen.add((path, name))
                    yield path, module, name, part
