"""Figures of exported detectors on a config's validation set, next to PyTorch's."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from terminaltables import AsciiTable
from torch import Tensor

from ropevit_mmdet.compat.config import metric_settings, type_name
from ropevit_mmdet.datasets import check_datasets, innermost_datasets
from ropevit_mmdet.deploy import check, onnx, torch_export
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.detector_checkpoint import check_classes

Progress = Callable[[Iterable[Any]], Iterable[Any]]
COMPARED_SCORE = 0.3  # of PyTorch's detections that are compared
DIFFERENCES = ("box difference (pixels)", "score difference", "1 - mask IoU")  # 95th percentiles


class ExportedDetector:
    """An exported detector with the `test_step` of mmdet's models.

    Args:
        run: runs the graph, as `onnx.runner` and `torch_export.runner` return it.
        metadata: fields of the file.
    """

    def __init__(self, run: check.Run, metadata: Mapping[str, Any]) -> None:
        self.run, self.metadata = run, metadata

    def test_step(self, data: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Detects objects in images of mmdet's test pipeline, one at a time."""
        for image, sample in zip(data["inputs"], data["data_samples"]):
            found = self.detect(self.prepared(image), sample.ori_shape, sample.scale_factor)
            values = zip(check.FIELDS, found)
            fields = {key: value for key, value in values if value is not None}
            sample.pred_instances = InstanceData(**fields)
        return list(data["data_samples"])

    def detect(
        self, inputs: Tensor, size: tuple[int, int], scale: Sequence[float] = (1.0, 1.0)
    ) -> check.Detections:
        """The detections in the first image of a batch; see `check.found`."""
        outputs = [output[0] for output in self.run(inputs, None)]
        return check.found(outputs, size, self.metadata["mask_thr_binary"] or 0.5, scale)

    def prepared(self, image: Tensor) -> Tensor:
        """The batch that the file takes for an image of mmdet's pipeline, BGR [3, H, W]."""
        of_file, batch = self.metadata["normalized_by"] == "file", self.metadata["batch"] or 1
        image = image.float()
        if of_file or self.metadata["channel_order"] == "RGB":
            image = image.flip(0)
        if of_file:
            image = image.round().byte()  # a pipeline with `to_float32` has fractions
        else:
            mean, std = (torch.tensor(self.metadata[key])[:, None, None] for key in ("mean", "std"))
            image = (image - mean) / std
        return image.repeat(batch, 1, 1, 1)


def open_exported(path: str | Path, provider: str = onnx.CPU) -> ExportedDetector:
    """Opens a *.onnx or *.pt2 file of `ropevit export`; see `onnx.runner` for the provider.

    Raises:
        UserError: it does not hold a detector, or there is no such provider.
    """
    is_onnx, problem = Path(path).suffix == ".onnx", ""
    try:
        data = Path(path).read_bytes()
        metadata = onnx.metadata_of(data) if is_onnx else torch_export.metadata_of(data)
    except ImportError as error:
        raise ImportError(f"missing {error.name}: pip install 'ropevit-mmdet[export]'") from error
    except Exception as error:  # no file, or the parser of another format's
        metadata, problem = {}, f": {error}"
    if metadata.get("part") != "detector" or "batch" not in metadata:
        raise UserError(f"{path} is not a file of `ropevit export --part detector`{problem}")
    run = onnx.runner(data, provider) if is_onnx else torch_export.runner(data)
    return ExportedDetector(run, metadata)


def evaluation_data(
    config: Config, size: Sequence[int] | None = None
) -> tuple[Any, list[dict[str, Any]]]:
    """A loader of the validation images, or else the test images, and settings of their metrics.

    Images come one at a time: PyTorch would pad a batch of several sizes, and padding counts as
    image.

    Args:
        size: (height, width) to which all images are resized, whatever the config says.

    Raises:
        UserError: there are no images with a metric, or the metric is not that of instances in
            one set of images; see also `check_datasets`.
    """
    config = copy.deepcopy(config)
    known = (s for s in ("val", "test") if config.get(f"{s}_dataloader"))
    split = next((s for s in known if config.get(f"{s}_evaluator")), None)
    if split is None:
        raise UserError("the config has no val_dataloader and val_evaluator to compute AP with")
    evaluator = config[f"{split}_evaluator"]
    metrics = metric_settings(evaluator)
    names = [type_name(one) for one in (evaluator, *metrics)]
    if other := next((name for name in names if re.match(r"MultiDatasets|.*Panoptic", name)), ""):
        raise UserError(f"{split}_evaluator: {other} does not evaluate instances in one dataset")
    for metric in metrics:
        if type_name(metric) == "CocoMetric":  # would also count images that are not tested
            metric["type"] = "FastCocoMetric"
    check_datasets(config, (split,))
    settings = config[f"{split}_dataloader"] | dict(batch_size=1)
    _resize(settings["dataset"], size)
    with _quiet():
        return Runner.build_dataloader(settings, seed=0), metrics


def evaluate(
    models: Mapping[str, Any],
    loader: Any,
    metrics: list[dict[str, Any]],
    *,
    images: int | None = None,
    progress: Progress = iter,
) -> dict[str, dict[str, float]]:
    """Evaluates models side by side on `evaluation_data`.

    Args:
        models: objects with mmdet's `test_step`, by name; the others are compared with the first.
        images: use only the first ones.
        progress: wraps the images.

    Returns:
        By model: the config's metrics, milliseconds per image, and `DIFFERENCES`.

    Raises:
        UserError: a file has other classes than the dataset, or in another order.
    """
    seconds, count = dict.fromkeys(models, 0.0), 0
    differences: dict[str, list[Tensor]] = {name: [] for name in models}
    for name, model in models.items():
        _check_classes(name, model, loader.dataset.metainfo["classes"])
    with _quiet():
        evaluators = {name: Evaluator(copy.deepcopy(metrics)) for name in models}
    for evaluator in evaluators.values():
        evaluator.dataset_meta = loader.dataset.metainfo
    for batch in itertools.islice(progress(loader), images):
        first: Any = None
        for name, model in models.items():
            data, start = copy.deepcopy(batch), time.perf_counter()
            with torch.no_grad():
                (sample,) = model.test_step(data)
            seconds[name] += time.perf_counter() - start
            evaluators[name].process([sample], batch)
            first = first or sample
            differences[name].append(_differences(first, sample))
        count += 1
    with _quiet():
        figures = {name: evaluator.evaluate(count) for name, evaluator in evaluators.items()}
    for name, one in figures.items():
        one["ms/image"] = 1000 * seconds[name] / count
        every = torch.cat(differences[name], dim=1)
        if every.numel():
            worst = every.quantile(0.95, dim=1, interpolation="higher")
            one |= dict(zip(DIFFERENCES, worst.tolist()))
    return figures


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Figures as text: a line for each, a column for each model."""
    names = dict.fromkeys(name for one in figures.values() for name in one)
    rows = [[n, *(f"{one.get(n, float('nan')):.4g}" for one in figures.values())] for n in names]
    return AsciiTable([["", *figures], *rows]).table


def calibration_images(
    config: Config, count: int, size: Sequence[int] | None = None
) -> list[Tensor]:
    """A random choice of training images through the validation pipeline, BGR [3, H, W]."""
    init_default_scope(config.get("default_scope") or "mmdet")
    tested = config.get("val_dataloader") or config.test_dataloader
    loaders = (config.get("train_dataloader") or tested, tested)
    dataset, other = (copy.deepcopy(next(innermost_datasets(one["dataset"]))) for one in loaders)
    dataset["pipeline"] = other["pipeline"]
    _resize(dataset, size)
    sampler = dict(type="DefaultSampler", shuffle=True)
    settings = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)
    with _quiet():
        batches = Runner.build_dataloader(settings, seed=0)
        return [batch["inputs"][0] for batch in itertools.islice(batches, count)]


def _check_classes(name: str, model: Any, classes: Sequence[str]) -> None:
    """Compares the class names in an exported file with the dataset's."""
    own = getattr(model, "metadata", {}).get("class_names") or classes
    if len(own) != len(classes):
        raise UserError(f"{name} has {len(own)} classes, and the dataset has {len(classes)}")
    if warning := check_classes(own, classes, f"of {name}"):
        print_log(warning, "current", logging.WARNING)


def _resize(dataset: Any, size: Sequence[int] | None) -> None:
    """Changes the settings of a dataset: all images get a size (height, width).

    They keep their aspect if the pipeline pads them.
    """
    scale = tuple(size or ())[::-1]  # width and height
    for one in innermost_datasets(dataset) if scale else ():
        padding = [step for step in one["pipeline"] if type_name(step) == "Pad"]
        for step in padding:
            step.pop("size_divisor", None)
            step["size"] = scale
        for step in one["pipeline"]:
            if type_name(step) == "Resize":
                step.update(scale=scale, keep_ratio=bool(padding))


def _differences(*samples: Any) -> Tensor:
    """Of boxes, scores and masks of the first one's detections, [3, N]."""
    found = [sample.pred_instances.cpu() for sample in samples]
    one, other = (check.Detections(*(part.get(key) for key in check.FIELDS)) for part in found)
    return torch.stack(check.differences_to(one, other))[:, one.scores >= COMPARED_SCORE]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No tables of the metrics: those of several models would mix."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
