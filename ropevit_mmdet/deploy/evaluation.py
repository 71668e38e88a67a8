"""Figures of exported files on a config's validation set, next to PyTorch's."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from ropevit_mmdet.compat.config import innermost_datasets, metric_settings, type_name
from ropevit_mmdet.deploy import check, onnx, torch_export
from ropevit_mmdet.errors import UserError

COMPARED_SCORE = 0.3  # PyTorch's detections that are compared have this score or more
SECONDS = "ms/image"
DIFFERENCES = ("box difference (pixels)", "score difference", "1 - mask IoU")


class ExportedDetector:
    """An exported detector with the `test_step` of mmdet's models.

    Args:
        run: runs the graph, as `onnx.runner` and `torch_export.runner` return it.
        metadata: fields of the file.
    """

    def __init__(self, run: check.Run, metadata: Mapping[str, Any]) -> None:
        self.run, self.metadata = run, metadata
        self.batch: int | None = metadata["batch"]

    def test_step(self, data: Mapping[str, Sequence[Any]]) -> list[DetDataSample]:
        """Detects objects in a batch of mmdet's test pipeline; images of one size run together."""
        samples: list[Any] = list(data["data_samples"])
        groups: dict[Any, list[tuple[Tensor, Any]]] = {}
        for image, sample in zip(map(self.prepared, data["inputs"]), samples):
            groups.setdefault(image.shape, []).append((image, sample))
        for group in groups.values():
            most = self.batch or len(group)
            for start in range(0, len(group), most):
                images, chosen = zip(*group[start : start + most])
                missing = (self.batch or 0) - len(images)  # of a fixed batch
                outputs = self.run(torch.stack([*images, *images[:1] * missing]), None)
                for sample, *one in zip(chosen, *outputs):
                    sample.pred_instances = self._instances(sample, *one)
        return samples

    def prepared(self, image: Tensor) -> Tensor:
        """An image of mmdet's pipeline, BGR [3, H, W], as the file takes it."""
        if self.metadata["normalized_by"] == "file":
            return image.flip(0)
        image = image.flip(0) if self.metadata["channel_order"] == "RGB" else image
        mean, std = (torch.tensor(self.metadata[key])[:, None, None] for key in ("mean", "std"))
        return (image.float() - mean) / std

    def _instances(self, sample: DetDataSample, *outputs: Tensor) -> InstanceData:
        size, thr = sample.ori_shape[:2], self.metadata["mask_thr_binary"] or 0.5
        found = check.found(*outputs, size, thr, scale=sample.scale_factor)
        fields = dict(bboxes=found.boxes, scores=found.scores, labels=found.labels)
        return InstanceData(**fields, **({} if found.masks is None else {"masks": found.masks}))


def open_exported(path: str | Path, provider: str = onnx.CPU) -> ExportedDetector:
    """Opens a file of `ropevit export`.

    Args:
        path: *.onnx, or *.pt2 of torch.export or AOTInductor, which PyTorch runs on the CPU.
        provider: of an ONNX file, as for `onnx.runner`.

    Raises:
        UserError: a file of another type or with features only; a provider that is not there.
    """
    data = Path(path).read_bytes()
    is_onnx = Path(path).suffix == ".onnx"
    metadata = onnx.metadata_of(data) if is_onnx else torch_export.metadata_of(data)
    if metadata.get("part") != "detector" or "batch" not in metadata:
        raise UserError(f"{path} is not a file of `ropevit export --part detector`")
    run = onnx.runner(data, provider) if is_onnx else torch_export.runner(data)
    return ExportedDetector(run, metadata)


def evaluate(
    models: Mapping[str, Any],
    config: Config,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, float]]:
    """Evaluates models side by side on the validation set, image by image.

    PyTorch would pad a batch of several sizes, and padding counts as image; files run one size.

    Args:
        models: objects with mmdet's `test_step`, by name; the others are compared with the first.
        images: use only the first ones.
        size: (height, width) to which all images are resized, whatever the config says.
        progress: wraps the images.

    Returns:
        For each model the figures of the config's metrics, the milliseconds per image, and the
        differences from the first (95th percentiles).
    """
    init_default_scope(config.get("default_scope") or "mmdet")
    with _quiet():
        dataset = _resized(config.val_dataloader["dataset"], size)
        settings = {**config.val_dataloader, "dataset": dataset, "batch_size": 1}
        loader = Runner.build_dataloader(settings, seed=0)
        evaluators = {name: Evaluator(metric_settings(config.val_evaluator)) for name in models}
    seen, seconds, differences = 0, dict.fromkeys(models, 0.0), dict.fromkeys(models, ())
    for evaluator in evaluators.values():
        evaluator.dataset_meta = loader.dataset.metainfo
    for batch in itertools.islice(progress(loader), images):
        results = []
        for name, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                results.append(model.test_step(copy.deepcopy(batch)))
            seconds[name] += time.perf_counter() - start
            differences[name] += tuple(map(_differences, results[0], results[-1]))
            evaluators[name].process(results[-1], batch)
        seen += 1
    with _quiet():
        figures = {name: evaluator.evaluate(seen) for name, evaluator in evaluators.items()}
    for name in models:
        figures[name] |= {SECONDS: 1000 * seconds[name] / seen, **_percentiles(differences[name])}
    return figures


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Figures as text: a line for each, a column for each model."""
    names = {name: 0 for one in figures.values() for name in one}
    lines = [["", *figures]]
    lines += [
        [n, *(f"{one[n]:.4g}" if n in one else "-" for one in figures.values())] for n in names
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    first, *others = widths
    rows = (
        "  ".join([line[0].ljust(first), *(text.rjust(w) for text, w in zip(line[1:], others))])
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)


def calibration_images(
    config: Config, count: int, *, size: Sequence[int] | None = None
) -> list[Tensor]:
    """Training images as the validation pipeline prepares them: BGR [3, H, W], a random choice."""
    init_default_scope(config.get("default_scope") or "mmdet")
    loader = config.get("train_dataloader") or config.val_dataloader
    dataset = copy.deepcopy(next(innermost_datasets(loader["dataset"])))
    validation = _resized(config.val_dataloader["dataset"], size)
    dataset["pipeline"] = next(innermost_datasets(validation))["pipeline"]
    sampler = dict(type="DefaultSampler", shuffle=True)
    settings = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)
    with _quiet():
        batches = Runner.build_dataloader(settings, seed=0)
        return [batch["inputs"][0] for batch in itertools.islice(batches, count)]


def _resized(dataset: Any, size: Sequence[int] | None) -> Any:
    """A copy of a dataset's settings, whose images all have a size (height, width)."""
    dataset = copy.deepcopy(dataset)
    for one in innermost_datasets(dataset) if size else ():
        for step in one["pipeline"]:
            if type_name(step) == "Resize":
                step.update(scale=(size[1], size[0]), keep_ratio=False)
    return dataset


def _differences(expected: DetDataSample, actual: DetDataSample) -> Tensor:
    """Of PyTorch's detections from `COMPARED_SCORE`: of boxes, scores and masks, [3, N]."""
    one, other = (
        check.Detections(*(sample.pred_instances.cpu().get(key) for key in check.FIELDS))
        for sample in (expected, actual)
    )
    parts = check.differences_to(one, other)
    return torch.stack(parts)[:, one.scores >= COMPARED_SCORE]


def _percentiles(differences: Sequence[Tensor]) -> dict[str, float]:
    every = torch.cat([part.float() for part in differences], dim=1)
    if not every.numel():
        return {}
    values = every.quantile(0.95, dim=1, interpolation="higher").tolist()
    return dict(zip((f"{part}, 95 %" for part in DIFFERENCES), values))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No tables of the metrics: several models would mix."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
