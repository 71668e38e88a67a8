"""Run a detector over picture files: overlays to look at and one COCO-style JSON to work with."""

import json
import os
import shutil
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
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as rle
from torch import nn

from ropevit_mmdet.checkpoint import check_fit
from ropevit_mmdet.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.drawing import Detection, draw_detections
from ropevit_mmdet.run_config import build_detector

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
RESULT_FILE = "predictions.json"
OVERLAY_FOLDER = "overlays"

Progress = Callable[[Sequence[Path]], Iterable[Path]]  # wraps an iteration, as tqdm does


class Predictor:
    """A detector with its weights, its class names and the picture pipeline of its test data.

    `checkpoint` must fit the config's model exactly; `device` as PyTorch names it, default the
    first GPU, else the CPU. Raises ValueError for a checkpoint or a device that will not do.
    """

    def __init__(self, config: Config, checkpoint: str, device: str | None = None) -> None:
        self.device = choose_device(device)
        loaded = read_detector_checkpoint(checkpoint)
        model = build_detector(config)
        check_fit(model.state_dict(), loaded["state_dict"], checkpoint)
        model.load_state_dict(loaded["state_dict"])
        self.model: nn.Module = revert_sync_batchnorm(model).to(self.device).eval()
        self.names: tuple[str, ...] = _class_names(config, loaded)
        self.pipeline = _array_pipeline(config)

    @torch.no_grad()
    def predict(self, pictures: Sequence[np.ndarray], *, score_thr: float) -> list[list[Detection]]:
        """The detections of a batch of RGB pictures [H, W, 3], uint8, best first.

        Boxes are in pixels of the picture as given, masks [H, W] likewise. Raises ValueError for a
        picture without pixels.
        """
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
                raise ValueError(f"a picture must be [H, W, 3] with pixels, not {picture.shape}")
        batch: dict[str, list[Any]] = {"inputs": [], "data_samples": []}
        for picture in pictures:
            bgr = np.ascontiguousarray(picture[:, :, ::-1])  # the order of mmdet's pipelines
            packed = self.pipeline({"img": bgr, "img_id": 0})
            batch["inputs"].append(packed["inputs"])
            batch["data_samples"].append(packed["data_samples"])
        return [_detections(sample, score_thr) for sample in self.model.test_step(batch)]


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
    return device


def find_pictures(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files named, and those with a picture's suffix in the folders named, in order of name.

    Raises ValueError for a path that is not there, a folder without pictures, and two pictures
    whose overlays would have one name.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"folder {path} holds no pictures ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"picture {path} does not exist")
    overlays: dict[str, Path] = {}
    for path in dict.fromkeys(found):
        other = overlays.setdefault(_overlay_name(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would have overlays of one name; predict them into two folders"
            )
    return list(overlays.values())


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture file as RGB [H, W, 3], uint8, turned upright as its EXIF data says.

    Raises ValueError, naming the file, if it cannot be decoded, has no pixels or holds NaN.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            deep = upright.mode[0] in "IF"  # one channel of 16 or 32 bits
            picture = np.asarray(upright if deep else upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"picture {path} cannot be read: not a picture, or cut short") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error
    if picture.size == 0:
        raise ValueError(f"picture {path} has no pixels")
    if not np.isfinite(picture).all():
        raise ValueError(f"picture {path} holds NaN or infinite values")
    if not deep:
        return picture
    if picture.dtype.kind in "iu" and picture.max() > 255:
        picture = picture / 257.0  # 65535 -> 255, where Pillow's own conversion would clip
    gray = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def predict_files(
    predictor: Predictor,
    pictures: Sequence[Path],
    out_dir: str | os.PathLike[str],
    *,
    score_thr: float = 0.3,
    batch_size: int = 1,
    progress: Progress = iter,
) -> int:
    """Write `<out_dir>/overlays/*` and `<out_dir>/predictions.json`; returns the number of objects.

    The JSON has COCO's `images`, `categories` (ids are positions in the class list, from 1) and
    `annotations`, with a score and a compressed mask, so pycocotools loads it as it is. All is
    written beside `out_dir` first: a picture that cannot be read leaves nothing behind.
    """
    out_dir = Path(out_dir).resolve()
    partial = out_dir.with_name(f".{out_dir.name}.partial-{os.getpid()}")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        (partial / OVERLAY_FOLDER).mkdir(parents=True)
        for paths in _batches(progress(pictures), batch_size):
            loaded = [read_picture(path) for path in paths]
            for path, picture, found in zip(
                paths, loaded, predictor.predict(loaded, score_thr=score_thr), strict=True
            ):
                overlay = Image.fromarray(draw_detections(picture, found, predictor.names))
                overlay.save(partial / OVERLAY_FOLDER / _overlay_name(path), quality=92)
                image_id = len(images) + 1
                height, width = picture.shape[:2]
                images.append(
                    {"id": image_id, "file_name": str(path), "width": width, "height": height}
                )
                for detection in found:
                    annotations.append(_annotation(detection, len(annotations) + 1, image_id))
        categories = [{"id": i, "name": name} for i, name in enumerate(predictor.names, start=1)]
        result = {"images": images, "categories": categories, "annotations": annotations}
        (partial / RESULT_FILE).write_text(json.dumps(result) + "\n", encoding="utf-8")
        _move_files(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(annotations)


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


def _class_names(config: Config, checkpoint: dict[str, Any]) -> tuple[str, ...]:
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


def _batches(items: Iterable[Path], size: int) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _overlay_name(path: Path) -> str:
    """Overlays of JPEG files are JPEG; all others are PNG, under the name of the picture."""
    return path.name if path.suffix.lower() in (".jpg", ".jpeg") else f"{path.stem}.png"


def _move_files(source: Path, target: Path) -> None:
    """Move the files below a folder to the same places below another, over those of that name."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
