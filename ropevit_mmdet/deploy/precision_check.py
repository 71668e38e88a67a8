"""Lower precision is compared with PyTorch in AP, and layers that it harms stay float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ropevit_mmdet.deploy import check, evaluation, onnx
from ropevit_mmdet.deploy.evaluation import ExportedDetector, Progress
from ropevit_mmdet.deploy.precision import Reduction

MAX_DROP = {"fp16": 0.002, "bf16": 0.005, "int8": 0.01}  # of AP
MAX_ERROR = {"fp16": 0.01, "bf16": 0.03, "int8": 0.15}  # of feature maps: relative Euclidean norm


class PrecisionCheck:
    """Accepts a file of lower precision, or finds the layers that prevent it.

    A detector's AP on the validation set may be `MAX_DROP` below PyTorch's; feature maps of
    training images may differ by `MAX_ERROR`. The images are looked for at once.

    Args:
        model, config, request, report, progress: those of `export.export_model`.
        metadata: the file's.
    """

    def __init__(
        self,
        model: Any,
        config: Config,
        metadata: Mapping[str, Any],
        request: Any,
        report: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.model, self.config, self.request = model, config, request
        self.report, self.progress, self.metadata = report, progress, metadata
        self.is_detector = request.part == "detector"
        self.is_static = request.precision == "int8" and not request.dynamic
        self.data = evaluation.evaluation_data(config, request.size) if self.is_detector else None
        if self.is_static or not self.is_detector:
            _ = self.inputs

    def accept(self, run: check.Run) -> None:
        """Raises RuntimeError if the results of a file are not good enough."""
        if problem := self._problem(run):
            raise RuntimeError(f"the {self.request.precision} file is not written: {problem}")

    def reduced(self, data: bytes) -> bytes:
        """Returns a float32 ONNX file in the precision of the request.

        After a failed check, the most sensitive layers stay float32: one, two, four ...

        Raises:
            RuntimeError: it is not good enough even with half of the layers in float32.
        """
        precision = self.request.precision
        reduction = Reduction(data, precision, self.inputs if self.is_static else ())
        self.report(f"{precision}: {', '.join(reduction.layers)}")
        order: list[str] = []
        result, count = reduction.file(), 0
        while problem := self._problem(onnx.runner(result, self.request.provider)):
            if not order:
                self.report(f"{problem}; measuring which layers cause it")
                losses = {layer: self._loss(reduction.file([layer])) for layer in reduction.layers}
                order = sorted(losses, key=losses.__getitem__)
            if 2 * count > len(order) or not order:
                kept = f"with float32 in {', '.join(order[:count])}: {problem}"
                raise RuntimeError(f"the {precision} file is not written, even {kept}")
            count = max(1, 2 * count)
            result = reduction.file(order[:count])
        self.report(f"float32 because of the check: {', '.join(order[:count]) or 'no layer'}")
        return result

    @functools.cached_property
    def inputs(self) -> list[Tensor]:
        """Training images as the file takes them, each [B, 3, H, W]."""
        images = evaluation.calibration_images(
            self.config, self.request.calibration, self.request.size
        )
        return list(map(ExportedDetector(lambda *_: (), self.metadata).prepared, images))

    def _problem(self, run: check.Run) -> str:
        """Why a file is not good enough, "" if it is."""
        precision = self.request.precision
        if self.data is None:
            error, most = max(self._errors(run)), MAX_ERROR[precision]
            self.report(f"largest relative error of the feature maps: {error:.4f}")
            return "" if error <= most else f"feature maps differ by {error:.3f} (at most {most})"
        models = {"PyTorch": self.model, precision: ExportedDetector(run, self.metadata)}
        options: dict[str, Any] = dict(images=self.request.images, progress=self.progress)
        figures = evaluation.evaluate(models, *self.data, **options)
        self.report(evaluation.table(figures))
        expected, actual = figures.values()
        # COCO's evaluation gives -1 without ground truth
        names = [name for name, ap in expected.items() if name.endswith("mAP") and ap >= 0]
        most = MAX_DROP[precision]
        values = {name: actual.get(name, 0.0) for name in names}  # no detections: no figures
        lower = [name for name in names if not values[name] >= expected[name] - most - 1e-6]
        text = [f"{name} {values[name]:.4f}, PyTorch {expected[name]:.4f}" for name in lower]
        text += [f"at most {most} lower"] if lower else [] if names else ["no mAP to check it"]
        return "; ".join(text)

    def _loss(self, data: bytes) -> float:
        return sum(self._errors(onnx.runner(data, self.request.provider)))

    @functools.cached_property
    def _expected(self) -> list[Any]:
        compute = check.predict if self.is_detector else check.feature_maps
        return [compute(self.model, images) for images in self.inputs]

    def _errors(self, run: check.Run) -> list[float]:
        """What differs from PyTorch in each input, 0 to 1."""
        exported, errors = ExportedDetector(run, self.metadata), []
        for images, expected in zip(self.inputs, self._expected):
            if not self.is_detector:
                pairs = zip(expected, run(images, None))
                parts = torch.stack([torch.dist(a, b) / a.norm() for a, b in pairs])
                errors += parts.nan_to_num(nan=float("inf")).tolist()
            else:
                found = exported.detect(images, (images.shape[2], images.shape[3]))
                errors.append(check.disagreement(expected[0], found))
        return errors
