"""Lower precision is compared with PyTorch in AP, and layers that it harms stay float32."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ropevit_mmdet.deploy import check, evaluation, onnx
from ropevit_mmdet.deploy.precision import MAX_DROP, MAX_ERROR, Reduction

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class PrecisionCheck:
    """Accepts a file of lower precision, or finds the layers that prevent it.

    A detector's AP on the validation set may be `MAX_DROP` below PyTorch's; feature maps of
    training images may differ by `MAX_ERROR`.

    Args:
        model, config, request, report, progress: those of `export.export_model`.
        metadata: the file's.
    """

    def __init__(
        self,
        model: Any,
        config: Config,
        metadata: Mapping[str, str],
        request: Any,
        report: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.model, self.config, self.request = model, config, request
        self.report, self.progress = report, progress
        self.metadata = {key: json.loads(value) for key, value in metadata.items()}

    def accept(self, run: check.Run) -> None:
        """Raises RuntimeError if the results of a file are not good enough."""
        if problem := self._problem(run):
            raise RuntimeError(f"the {self.request.precision} file is not written: {problem}")

    def reduced(self, data: bytes) -> bytes:
        """Returns a float32 ONNX file in the precision of the request.

        Raises:
            RuntimeError: it is not good enough even with nearly all layers in float32.
        """
        inputs = () if self.request.dynamic else self.inputs
        reduction = Reduction(data, self.request.precision, inputs)
        self.report(f"{self.request.precision}: {', '.join(reduction.layers)}")
        result, order, count = reduction.file(), [], 0
        while problem := self._problem(onnx.runner(result, self.request.provider)):
            if not order:
                self.report(f"{problem}; measuring which layers cause it")
                order = reduction.sensitivity(self._loss)
            count = max(1, 2 * count)
            text = f"{problem}, with these layers in float32: {', '.join(order[: count // 2])}"
            if count >= len(order):
                raise RuntimeError(f"the {self.request.precision} file is not written: {text}")
            result = reduction.file(order[:count])
        self.report(f"float32 besides decoding: {', '.join(order[:count]) or 'no layer'}")
        return result

    @functools.cached_property
    def inputs(self) -> list[Tensor]:
        """Training images as the file takes them, each [B, 3, H, W]."""
        size, count = self.request.size, self.request.calibration
        images = evaluation.calibration_images(self.config, count, size=size)
        detector = evaluation.ExportedDetector(lambda *_: (), self.metadata)
        batch = self.request.batch or 1
        return [detector.prepared(image)[None].repeat(batch, 1, 1, 1) for image in images]

    @functools.cached_property
    def _expected(self) -> list[Any]:
        """PyTorch's detections or feature maps of each input."""
        if self.request.part == "detector":
            return [check.predict(self.model, images)[0] for images in self.inputs]
        return [check.feature_maps(self.model, images) for images in self.inputs]

    def _problem(self, run: check.Run) -> str:
        """Why a file is not good enough, "" if it is."""
        precision = self.request.precision
        if self.request.part == "features":
            error, most = max(self._errors(run)), MAX_ERROR[precision]
            self.report(f"largest relative error of the feature maps: {error:.4f}")
            return f"feature maps differ by {error:.3f} (at most {most})" if error > most else ""
        models = {"PyTorch": self.model, precision: evaluation.ExportedDetector(run, self.metadata)}
        options: dict[str, Any] = dict(images=self.request.images, size=self.request.size)
        figures = evaluation.evaluate(models, self.config, progress=self.progress, **options)
        self.report(evaluation.table(figures))
        expected, actual = figures.values()
        return "; ".join(
            f"{name} {actual[name]:.4f}, PyTorch {value:.4f} (at most {MAX_DROP[precision]} lower)"
            for name, value in expected.items()
            if name.endswith("mAP") and not actual[name] >= value - MAX_DROP[precision]
        )

    def _loss(self, data: bytes) -> float:
        return sum(self._errors(onnx.runner(data, self.request.provider)))

    def _errors(self, run: check.Run) -> list[float]:
        """What differs from PyTorch in each input, 0 to 1."""
        errors = []
        for images, expected in zip(self.inputs, self._expected):
            outputs = [output[0] for output in run(images, None)]
            if self.request.part == "detector":
                size, thr = tuple(images.shape[2:]), self.metadata["mask_thr_binary"] or 0.5
                errors.append(check.disagreement(expected, check.found(*outputs, size, thr)))
            else:
                pairs = [(a[0], b.float()) for a, b in zip(expected, outputs)]
                errors += [float(torch.dist(a, b) / a.norm()) for a, b in pairs]
        return errors
