"""Runs a detector over images and videos; writes overlays and one COCO-style JSON file."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as rle

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
from ropevit_mmdet.datasets import innermost_datasets
from ropevit_mmdet.engine.config import build_detector
from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.frozen_backbone import FrozenBackbone
from ropevit_mmdet.visualization.overlays import draw_sample
from ropevit_mmdet.weights.checkpoint import check_fit
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint

OVERLAY_DIRECTORY = "overlays"
RESULT_FILE = "predictions.json"


class Detector:
    """A detector with its weights, class names and test pipeline.

    Args:
        config: the config of the detector.
        checkpoint: path or URL of a checkpoint that fits the config's model exactly.
        device: as PyTorch names it; by default the first GPU, else the CPU.

    Attributes:
        model: the model in eval mode, without the wrapper of a frozen backbone.
        names: the class name of each label.
        min_score: the score below which the model itself drops detections.

    Raises:
        UserError: a checkpoint or device that cannot be used.
    """

    def __init__(self, config: Config, checkpoint: str, device: str | None = None) -> None:
        self.device = choose_device(device)
        loaded = read_detector_checkpoint(checkpoint)
        model: Any = build_detector(config)
        check_fit(model.state_dict(), loaded["state_dict"], str(checkpoint))
        model.load_state_dict(loaded["state_dict"])
        if isinstance(getattr(model, "backbone", None), FrozenBackbone):
            model.backbone = model.backbone.backbone
        self.model: Any = revert_sync_batchnorm(model).to(self.device).eval()
        float32_decoding(self.model)
        self.names = class_names(config, loaded)
        settings = config.model.get("test_cfg") or {}
        self.min_score: float = settings.get("rcnn", settings).get("score_thr", 0.0)
        steps = get_test_pipeline_cfg(config.copy())
        steps = [step for step in steps if "Annotations" not in step["type"]]
        steps[0] = {**steps[0], "type": "mmdet.LoadImageFromNDArray"}
        self._pipeline = Compose(steps)

    @torch.no_grad()
    def predict(
        self, images: Sequence[np.ndarray], *, score_thr: float = 0.3
    ) -> list[InstanceData]:
        """Detects objects in a batch of RGB images [H, W, 3], uint8.

        Returns:
            For each image, best first and on the CPU: `bboxes` [N, 4] (x1, y1, x2, y2) in its
            pixels, `labels`, `scores` and, of a detector with masks, `masks` [N, H, W].
        """
        found = [one.pred_instances for one in self.model.test_step(self.pack(images))]
        found = [one[one.scores >= score_thr].cpu() for one in found]
        return [one[one.scores.argsort(descending=True, stable=True)] for one in found]

    def pack(self, images: Sequence[np.ndarray]) -> dict[str, list[Any]]:
        """Runs the test pipeline; returns the input of the model's data preprocessor."""
        arrays = [np.ascontiguousarray(image[:, :, ::-1]) for image in images]  # mmdet loads BGR
        packed = [self._pipeline({"img": array, "img_id": 0}) for array in arrays]
        return {key: [one[key] for one in packed] for key in ("inputs", "data_samples")}


def choose_device(name: str | None) -> torch.device:
    """Returns a device by name, by default the first GPU, else the CPU.

    Raises:
        UserError: PyTorch does not know the device or cannot use it here.
    """
    name = name or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every backend has its own error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return torch.device(name)


def class_names(config: Config, checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Returns the class names in a checkpoint, else those of the config's test data."""
    meta = (checkpoint.get("meta") or {}).get("dataset_meta") or {}
    names = meta.get("classes") or meta.get("CLASSES")
    if not names:
        dataset = next(innermost_datasets(config.test_dataloader.dataset))
        names = dataset.get("metainfo", {}).get("classes")
        names = names or DATASETS.get(dataset.type).METAINFO["classes"]
    return (names,) if isinstance(names, str) else tuple(names)


def predict_files(
    detector: Detector,
    paths: Sequence[Path],
    out_dir: str | os.PathLike[str],
    *,
    score_thr: float = 0.3,
    top_k: int | None = None,
    classes: Sequence[str] | None = None,
    every: int = 1,
    batch_size: int = 1,
    truth: GroundTruth | None = None,
    progress: Callable[..., Iterable[InputImage]] = lambda images, total: images,
) -> int:
    """Writes `<out_dir>/overlays/*` and `<out_dir>/predictions.json`, all or nothing.

    pycocotools loads the JSON file; its annotations have scores. Images of videos have a `frame`.

    Args:
        detector: a `Detector`.
        paths: images and videos.
        out_dir: the directory to write.
        score_thr: drop detections of lower scores.
        top_k: keep at most this many detections per image.
        classes: keep detections of these classes only.
        every: use every n-th frame of a video; its overlay keeps the pace of the video.
        batch_size: images per forward pass.
        truth: annotations to render next to the predictions of the images that they contain.
        progress: wraps the iterator over images; gets their number too.

    Returns:
        The number of detections.

    Raises:
        UserError: an image that cannot be read, or a class that the detector does not have.
    """
    names = detector.names
    if unknown := sorted(set(classes or ()) - set(names)):
        raise UserError(f"the detector has no class {unknown}; its classes: {list(names)}")
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    result: dict[str, list] = {"images": [], "categories": categories, "annotations": []}
    wanted = torch.tensor([i for i, name in enumerate(names) if not classes or name in classes])
    images = iter(progress(read_images(paths, every), count_images(paths, every)))
    with (
        output_directory(out_dir) as directory,
        closing(_OverlayWriter(directory / OVERLAY_DIRECTORY, every)) as overlays,
    ):
        while batch := list(islice(images, batch_size)):
            predictions = detector.predict([one.pixels for one in batch], score_thr=score_thr)
            for image, found in zip(batch, predictions, strict=True):
                kept = found[torch.isin(found.labels, wanted)][:top_k]
                overlays.write(image, _overlay(image, kept, names, truth))
                _append(result, image, kept)
        (directory / RESULT_FILE).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return len(result["annotations"])


class _OverlayWriter:
    """Writes the overlays of images as images and those of a video as a video."""

    def __init__(self, directory: Path, every: int) -> None:
        directory.mkdir()
        self.directory, self.every = directory, every
        self._video: VideoWriter | None = None

    def write(self, image: InputImage, overlay: np.ndarray) -> None:
        path = self.directory / overlay_name(image.path)
        if image.frame is None:
            Image.fromarray(overlay).save(path, quality=92)
            return
        if image.frame == 0:
            self.close()
            self._video = VideoWriter(path, Video(image.path).fps / self.every)
        self._video.write(overlay)  # type: ignore[union-attr]

    def close(self) -> None:
        if self._video is not None:
            self._video.close()


def _overlay(
    image: InputImage, found: InstanceData, names: Sequence[str], truth: GroundTruth | None
) -> np.ndarray:
    sample = DetDataSample(pred_instances=found)
    if truth and image.frame is None and (annotated := truth.of(image.path)) is not None:
        sample.gt_instances = annotated
    return draw_sample(image.pixels, sample, truth.names if truth else names)


def _append(result: dict[str, list], image: InputImage, found: InstanceData) -> None:
    """Adds an image and its detections to a COCO-style result."""
    height, width = image.pixels.shape[:2]
    image_id = len(result["images"]) + 1
    entry = {"id": image_id, "file_name": str(image.path), "width": width, "height": height}
    result["images"].append(entry | ({} if image.frame is None else {"frame": image.frame}))
    labels, scores = found.labels.tolist(), found.scores.tolist()
    for index, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
        fields = {
            "id": len(result["annotations"]) + 1,
            "image_id": image_id,
            "category_id": labels[index] + 1,
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), 2),
            "iscrowd": 0,
            "score": round(scores[index], 5),
        }
        if "masks" in found:
            code = rle.encode(np.asfortranarray(found.masks[index], dtype=np.uint8))
            fields["area"] = int(rle.area(code))
            fields["segmentation"] = code | {"counts": code["counts"].decode("ascii")}
        result["annotations"].append(fields)
