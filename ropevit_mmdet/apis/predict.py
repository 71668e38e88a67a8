"""Run a detector over images and videos: overlays to look at, one COCO-style JSON to use."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from PIL import Image
from pycocotools import mask as rle
from torch import nn

from ropevit_mmdet._images import (
    InputImage,
    Video,
    VideoWriter,
    count_images,
    overlay_name,
    read_images,
)
from ropevit_mmdet._output import output_directory
from ropevit_mmdet.apis.ground_truth import GroundTruth
from ropevit_mmdet.datasets.validation.image_files import THINNEST
from ropevit_mmdet.engine.config import build_detector
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.visualization.overlays import Detection, draw_detections, side_by_side
from ropevit_mmdet.weights.checkpoint import check_fit
from ropevit_mmdet.weights.detector_checkpoint import named, read_detector_checkpoint

OVERLAY_DIRECTORY = "overlays"
RESULT_FILE = "predictions.json"
_JPEG_SIDE = 65_500  # pixels; the most that libjpeg writes

# Wraps an iteration over so many images, as tqdm does.
Progress = Callable[[Iterator[InputImage], int], Iterable[InputImage]]


class Predictor:
    """A detector with its weights, its class names and the image pipeline of its test data.

    `checkpoint` must fit the config's model exactly; `device` as PyTorch names it, default the
    first GPU, else the CPU. Raises ValueError for a checkpoint or a device that will not do.
    """

    def __init__(self, config: Config, checkpoint: str, device: str | None = None) -> None:
        self.device = choose_device(device)
        loaded = read_detector_checkpoint(checkpoint)
        model = build_detector(config)
        check_fit(model.state_dict(), loaded["state_dict"], named(checkpoint))
        model.load_state_dict(loaded["state_dict"])
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, FrozenBackbone):  # nothing is trained, nor looked at twice
            model.backbone = backbone.backbone
        self.model: nn.Module = revert_sync_batchnorm(model).to(self.device).eval()
        self.names: tuple[str, ...] = class_names(config, loaded)
        self.lowest_score = lowest_score(config)
        self.pipeline = _array_pipeline(config)

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray], *, score_thr: float) -> list[list[Detection]]:
        """The detections of a batch of RGB images [H, W, 3], uint8, best first.

        Boxes are in pixels of the image as given, masks [H, W] likewise. Raises ValueError for a
        image without pixels, and for one too thin to be resized.
        """
        batch = self.packed(images)
        return [_detections(sample, score_thr) for sample in self.model.test_step(batch)]

    def packed(self, images: Sequence[np.ndarray]) -> dict[str, list[Any]]:
        """A batch of RGB images [H, W, 3], uint8, as the model's data preprocessor takes it."""
        batch: dict[str, list[Any]] = {"inputs": [], "data_samples": []}
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise ValueError(f"an image must be [H, W, 3] with pixels, not {image.shape}")
            if max(image.shape[:2]) > THINNEST * min(image.shape[:2]):
                raise ValueError(
                    f"an image of {image.shape[1]} x {image.shape[0]} pixels is more than "
                    f"{THINNEST} times as long as wide: made smaller, it has no pixel left"
                )
            bgr = np.ascontiguousarray(image[:, :, ::-1])  # the order of mmdet's pipelines
            packed = self.pipeline({"img": bgr, "img_id": 0})
            batch["inputs"].append(packed["inputs"])
            batch["data_samples"].append(packed["data_samples"])
        return batch


def choose_device(name: str | None) -> torch.device:
    """The device of a name; raises ValueError if PyTorch does not know it or cannot use it."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not one that PyTorch knows: cpu, cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} GPUs here")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind that PyTorch lacks here has its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {name!r} cannot be used here: {why}") from error
    return device


def lowest_score(config: Config) -> float:
    """The score that the config's model itself asks of a detection; 0 if it says nothing."""
    settings = config.model.get("test_cfg") or {}
    return settings.get("rcnn", settings).get("score_thr", 0.0)  # of two stages the last decides


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    out_dir: str | os.PathLike[str],
    *,
    score_thr: float = 0.3,
    top_k: int | None = None,
    classes: Sequence[str] | None = None,
    every: int = 1,
    batch_size: int = 1,
    truth: GroundTruth | None = None,
    progress: Progress = lambda images, total: images,
) -> int:
    """Write `<out_dir>/overlays/*` and `<out_dir>/predictions.json`; returns the number of objects.

    The JSON has COCO's `images`, `categories` (ids are positions in the class list, from 1) and
    `annotations`, with a score and a compressed mask, so pycocotools loads it as it is. All is
    written beside `out_dir` first: an image that cannot be read leaves nothing behind.

    Args:
        top_k: keep at most so many objects of an image, the best.
        classes: keep objects of these classes only.
        every: of videos, look at every so-manyth frame; the overlay plays at the video's pace. An
            image of the JSON has the number of its `frame`.
        truth: annotations to draw beside the predictions, where they know the image.

    Raises:
        ValueError: an image that cannot be read, a class that the detector does not know.
    """
    wanted = _labels(predictor.names, classes)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    items = progress(read_images(paths, every), count_images(paths, every))
    with (
        output_directory(out_dir) as directory,
        _Overlays(directory / OVERLAY_DIRECTORY, every) as overlays,
    ):
        for batch in _batches(items, batch_size):
            try:
                found = predictor.predict([item.pixels for item in batch], score_thr=score_thr)
            except ValueError as error:
                names = ", ".join(str(item.path) for item in batch)
                raise ValueError(f"{names}: {error}") from error
            for item, detections in zip(batch, found, strict=True):
                detections = [one for one in detections if one.label in wanted][:top_k]
                overlays.add(item, _overlay(item, detections, predictor.names, truth))
                images.append(_image(item, len(images) + 1))
                for one in detections:
                    annotations.append(_annotation(one, len(annotations) + 1, len(images)))
        categories = [{"id": i, "name": name} for i, name in enumerate(predictor.names, start=1)]
        result = {"images": images, "categories": categories, "annotations": annotations}
        (directory / RESULT_FILE).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return len(annotations)


class _Overlays:
    """Writes overlays into a directory: those of images one by one, those of a video as a video."""

    def __init__(self, directory: Path, every: int) -> None:
        self.directory, self.every = directory, every
        self._video: VideoWriter | None = None

    def __enter__(self) -> "_Overlays":
        self.directory.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        if self._video is not None:
            self._video.close()

    def add(self, item: InputImage, overlay: np.ndarray) -> None:
        path = self.directory / overlay_name(item.path)
        if item.frame is None:
            if path.suffix.lower() != ".png" and max(overlay.shape) > _JPEG_SIDE:
                raise ValueError(
                    f"{item.path}: its overlay has {overlay.shape[1]} x {overlay.shape[0]} pixels, "
                    f"a JPEG file holds {_JPEG_SIDE} a side; give the image as PNG"
                )
            Image.fromarray(overlay).save(path, quality=92)
            return
        if item.frame == 0:
            if self._video is not None:
                self._video.close()
            self._video = VideoWriter(path, Video(item.path).fps / self.every)
        self._video.write(overlay)


def _overlay(
    item: InputImage,
    detections: Sequence[Detection],
    names: Sequence[str],
    truth: GroundTruth | None,
) -> np.ndarray:
    predicted = draw_detections(item.pixels, detections, names)
    annotated = truth.of(item.path, item.pixels.shape[:2]) if truth and item.frame is None else None
    if annotated is None:
        return predicted
    true = draw_detections(item.pixels, annotated, truth.names)
    return side_by_side([true, predicted], ["ground truth", "prediction"])


def _image(item: InputImage, image_id: int) -> dict[str, Any]:
    height, width = item.pixels.shape[:2]
    image = {"id": image_id, "file_name": str(item.path), "width": width, "height": height}
    return image if item.frame is None else image | {"frame": item.frame}


def _labels(names: Sequence[str], classes: Sequence[str] | None) -> set[int]:
    """The labels of classes, of all where it is None; ValueError for one that is not known."""
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        known = ", ".join(map(repr, names))
        raise ValueError(f"the detector knows no class {unknown[0]!r}; its classes: {known}")
    return {label for label, name in enumerate(names) if classes is None or name in classes}


def _annotation(detection: Detection, annotation_id: int, image_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = detection.box
    annotation = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": detection.label + 1,
        "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round((x2 - x1) * (y2 - y1), 2),
        "iscrowd": 0,
        "score": round(detection.score, 5),
    }
    if detection.mask is not None:
        code = rle.encode(np.asfortranarray(detection.mask.astype(np.uint8)))
        annotation["area"] = int(rle.area(code))
        annotation["segmentation"] = {
            "size": list(code["size"]),
            "counts": code["counts"].decode("ascii"),
        }
    return annotation


def _detections(sample: Any, score_thr: float) -> list[Detection]:
    found = sample.pred_instances
    found = found[found.scores >= score_thr].cpu()
    masks = found.masks.numpy().astype(bool) if "masks" in found else [None] * len(found)
    rows = zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), masks)
    detections = [Detection(tuple(box), label, score, mask) for box, label, score, mask in rows]
    return sorted(detections, key=lambda detection: -detection.score)


def _array_pipeline(config: Config) -> Compose:
    """The pipeline of the test data, fed with arrays and without what reads annotations."""
    steps = [
        step for step in get_test_pipeline_cfg(config.copy()) if "Annotations" not in step["type"]
    ]
    steps[0] = {**steps[0], "type": "mmdet.LoadImageFromNDArray"}
    return Compose(steps)


def class_names(config: Config, checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """The class names in the checkpoint, else those of the config's test data."""
    meta = (checkpoint.get("meta") or {}).get("dataset_meta") or {}
    names = meta.get("classes") or meta.get("CLASSES")
    if not names:
        dataset = config.test_dataloader.dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        names = (dataset.get("metainfo") or {}).get("classes")
        names = names or DATASETS.get(dataset.type).METAINFO["classes"]
    return (names,) if isinstance(names, str) else tuple(names)


def _batches(items: Iterable[InputImage], size: int) -> Iterator[list[InputImage]]:
    batch: list[InputImage] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
