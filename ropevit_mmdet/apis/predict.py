"""Runs a detector over images and videos; writes overlays and one COCO-style JSON file."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from ropevit_mmdet._images import (
    InputImage,
    Video,
    VideoWriter,
    count_images,
    overlay_name,
    read_images,
)
from ropevit_mmdet._output import output_directory
from ropevit_mmdet.apis.detector import Detector
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.visualization.overlays import draw_sample

OVERLAY_DIRECTORY = "overlays"
RESULT_FILE = "predictions.json"


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
) -> tuple[int, list[str]]:
    """Writes `<out_dir>/overlays/*` and `<out_dir>/predictions.json`, all or nothing.

    pycocotools loads the JSON file; its annotations have scores. Images of videos have a `frame`.
    A terminal shows the progress.

    Args:
        detector: a `Detector`.
        paths: images and videos.
        out_dir: the directory to write.
        score_thr: drop detections of lower scores.
        top_k: keep at most this many detections per image.
        classes: keep detections of these classes only.
        every: use every n-th frame of a video; its overlay keeps the pace of the video.
        batch_size: images per forward pass.

    Returns:
        The number of detections, and a message for each file that was skipped.

    Raises:
        UserError: not one image can be used, a class that the detector does not have, or a detector
            of panoptic segmentation only.
    """
    names = detector.classes
    if unknown := sorted(set(classes or ()) - set(names)):
        raise UserError(f"the detector has no class {unknown}; its classes: {list(names)}")
    labels = {i for i, name in enumerate(names) if not classes or name in classes}
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    result: dict[str, list] = {"images": [], "categories": categories, "annotations": []}
    skipped: list[str] = []
    prepared = _prepared(detector, paths, every, skipped)
    videos: dict[Path, VideoWriter] = {}
    with output_directory(out_dir) as directory:
        (directory / OVERLAY_DIRECTORY).mkdir()
        while batch := list(islice(prepared, batch_size)):
            samples = detector.detect([packed for _, packed in batch], score_thr=score_thr)
            for image, _ in batch:
                sample = samples.pop(0)
                if "pred_instances" not in sample:
                    raise UserError("the detector finds no instances: set test_cfg.instance_on")
                found = _kept(sample.pred_instances, labels, top_k)
                overlay = draw_sample(image.pixels, DetDataSample(pred_instances=found), names)
                path = directory / OVERLAY_DIRECTORY / overlay_name(image.path)
                _write_overlay(path, overlay, image, videos, every)
                _append(result, image, found)
        for video in videos.values():
            video.close()
        if not result["images"]:
            raise UserError("; ".join(skipped[:3]) or "the videos have no frames")
        (directory / RESULT_FILE).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return len(result["annotations"]), skipped


def _prepared(
    detector: Detector, paths: Sequence[Path], every: int, skipped: list[str]
) -> Iterator[tuple[InputImage, dict[str, Any]]]:
    """Each image with the input of the detector; `skipped` gets why a file cannot be used."""
    total = count_images(paths, every)
    with tqdm(total=total, desc="predicting", unit="image", disable=None) as progress:
        for path in paths:
            try:
                for image in read_images([path], every):
                    progress.update()
                    yield image, detector.prepare(image.pixels[:, :, ::-1], image.path)
            except UserError as error:
                skipped.append(str(error))


def _write_overlay(
    path: Path, overlay: np.ndarray, image: InputImage, videos: dict[Path, VideoWriter], every: int
) -> None:
    """Writes the overlay of an image, or adds that of a frame to its video."""
    if image.frame is None:
        Image.fromarray(overlay).save(path, quality=92)
        return
    if path not in videos:
        for done in videos.values():
            done.close()
        videos.clear()
        videos[path] = VideoWriter(path, Video(image.path).fps / every)
    videos[path].write(overlay)


def _kept(found: InstanceData, labels: set[int], top_k: int | None) -> InstanceData:
    """The best detections of some labels, masks as run lengths: together they are large."""
    keep = [i for i, label in enumerate(found.labels.tolist()) if label in labels][:top_k]
    kept = InstanceData(**{key: found[key][keep] for key in ("bboxes", "labels", "scores")})
    if "masks" in found:
        kept.masks = [rle.encode(np.asfortranarray(found.masks[i], dtype=np.uint8)) for i in keep]
    return kept


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
            code = found.masks[index]
            fields["area"] = int(rle.area(code))
            fields["segmentation"] = code | {"counts": code["counts"].decode("ascii")}
        result["annotations"].append(fields)
