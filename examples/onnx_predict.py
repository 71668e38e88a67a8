"""Detect objects in images with a file of `ropevit export`, without PyTorch or MMDetection.

Self-contained: copy it next to the .onnx file. Needs onnxruntime, numpy and Pillow. Prints
COCO-style JSON, boxes [x, y, width, height] in pixels of the original image, masks as run lengths.
An image that cannot be used is named and skipped; the exit status is then 1.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_ASPECT = 100  # of the sides: smaller than this, resizing can leave no pixel
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow starts programs for some others
TRANSPOSE = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def main(argv=None):
    args = parse_args(argv)
    try:
        detector, images = Detector(args.file, args.provider), find_images(args.images)
        result, skipped = predict_files(detector, images, args.score_thr, args.batch)
        if not result["images"]:
            raise ValueError(skipped[0])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    text = json.dumps(result, indent=1) + "\n"
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    for message in skipped:
        sys.stderr.write(f"skipped: {message}\n")
    if skipped:
        raise SystemExit(1)


class Detector:
    """An exported detector and the metadata in its file."""

    def __init__(self, path, providers=("CPUExecutionProvider",)):
        missing = set(providers) - set(onnxruntime.get_available_providers())
        if missing:
            known = ", ".join(onnxruntime.get_available_providers())
            raise ValueError(f"this onnxruntime has no {', '.join(sorted(missing))} (only {known})")
        try:
            self.session = onnxruntime.InferenceSession(path, providers=list(providers))
        except Exception as error:  # onnxruntime's own types
            raise ValueError(f"{path} cannot be loaded: {error}") from error
        fields = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: json.loads(value) for key, value in fields.items()}
        if self.metadata.get("part") != "detector":
            raise ValueError(f"{path} is not a file of `ropevit export --part detector`")
        if self.metadata["resize"] is None:
            raise ValueError(f"the config of {path} does more than resize its test images")
        outputs = [output.name for output in self.session.get_outputs()]
        self.is_batched = outputs[:2] == ["dets", "labels"]  # files of version 0.1.0 are not
        self.batch = self.metadata.get("batch") if self.is_batched else 1  # None: any number

    def predict(self, image):
        """RGB image [H, W, 3], uint8 -> boxes [N, 4] (x1, y1, x2, y2), scores, labels, masks.

        Masks are [N, H, W], bool, or None.
        """
        return self.predict_batch([self.prepare(image)], [image.shape[:2]])[0]

    def prepare(self, image):
        """RGB image [H, W, 3], uint8 -> what the file takes for it, [3, height, width]."""
        height, width = image.shape[:2]
        # a file for one size takes every image in it
        fixed = self.metadata.get("size")
        new_height, new_width = fixed or new_size(height, width, **self.metadata["resize"])
        long, short = max(height, width), min(height, width)
        if long > MAX_ASPECT * short or 0 in (new_height, new_width):
            raise ValueError(f"is too thin: {width} x {height} pixels")
        image = resize(image, new_height, new_width)
        if self.metadata.get("normalized_by") == "file":
            return image.transpose(2, 0, 1)
        if self.metadata["channel_order"] == "BGR":
            image = image[:, :, ::-1]
        mean, std = (np.float32(self.metadata[key]) for key in ("mean", "std"))
        return ((image.astype(np.float32) - mean) / std).transpose(2, 0, 1)  # the graph pads it

    def predict_batch(self, inputs, sizes):
        """Prepared images of one size, and the sizes (height, width) of the original images.

        Returns what `predict` returns, of each image.
        """
        images = np.stack(inputs + inputs[:1] * ((self.batch or 1) - len(inputs)))
        outputs = self.session.run(None, {self.session.get_inputs()[0].name: images})
        if self.is_batched:
            found = outputs[1] >= 0
            results = [[part[i][found[i]] for part in outputs] for i in range(len(inputs))]
            results = [(dets[:, :4], dets[:, 4], *rest) for dets, *rest in results]
        else:
            results = [outputs]
        return [self.to_original(*one, images.shape[2:], size) for one, size in zip(results, sizes)]

    def to_original(self, boxes, scores, labels, *rest):
        """From pixels of the resized image to those of the original image."""
        *masks, (height, width), (old_height, old_width) = rest
        boxes = boxes / np.float32([width / old_width, height / old_height] * 2)
        if not masks:
            return boxes, scores, labels, None
        (masks,) = masks
        if masks.dtype == bool:
            rows, columns = (
                np.arange(old) * new // old
                for old, new in ((old_height, height), (old_width, width))
            )
            return boxes, scores, labels, masks[:, rows][:, :, columns]
        threshold = self.metadata["mask_thr_binary"]
        pasted = [
            paste(mask, box, old_height, old_width) >= threshold for mask, box in zip(masks, boxes)
        ]
        return boxes, scores, labels, np.reshape(pasted, (len(masks), old_height, old_width))


def predict_files(detector, paths, score_thr, batch=1):
    """Returns a COCO-style document: images, categories (ids from 1), annotations with scores.

    And a message for each image that was skipped.
    """
    images, annotations, skipped, waiting = [], [], [], {}

    def predict_waiting(size):
        inputs, sizes, ids = zip(*waiting.pop(size))
        for image_id, detections in zip(ids, detector.predict_batch(list(inputs), sizes)):
            annotations.extend(annotations_of(image_id, detections, score_thr))

    for path in paths:
        try:
            image = read_image(path)
            prepared = detector.prepare(image)
        except ValueError as error:
            skipped.append(f"image {path} {error}")
            continue
        height, width = image.shape[:2]
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": str(path), "width": width, "height": height})
        group = waiting.setdefault(prepared.shape, [])  # of one size: they make a batch
        group.append((prepared, (height, width), image_id))
        if len(group) == (detector.batch or batch):
            predict_waiting(prepared.shape)
    for size in list(waiting):
        predict_waiting(size)
    annotations.sort(key=lambda one: one["image_id"])  # stable: best first in each image
    annotations = [{"id": i, **one} for i, one in enumerate(annotations, start=1)]
    names = detector.metadata["class_names"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    return document, skipped


def annotations_of(image_id, detections, score_thr):
    """COCO annotations without ids; a mask is uncompressed run-length encoding."""
    boxes, scores, labels, masks = detections
    for i, (box, score, label) in enumerate(zip(boxes, scores, labels)):
        if score < score_thr:
            continue
        x1, y1, x2, y2 = map(float, box)
        annotation = {
            "image_id": image_id,
            "category_id": int(label) + 1,
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), 2),
            "iscrowd": 0,
            "score": round(float(score), 5),
        }
        if masks is not None:
            annotation["area"] = int(masks[i].sum())
            annotation["segmentation"] = run_lengths(masks[i])
        yield annotation


def run_lengths(mask):
    """COCO's uncompressed run-length encoding: column by column, background first."""
    pixels = mask.flatten(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    counts = np.diff([0, *changes, pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def paste(mask, box, height, width):
    """Probabilities [h, w] in a box -> [height, width], bilinear, 0 outside, as mmdet does."""
    weights = []
    for low, high, length, cells in (
        (box[1], box[3], height, mask.shape[0]),
        (box[0], box[2], width, mask.shape[1]),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            position = (np.arange(length, dtype=np.float32) + np.float32(0.5) - low) / (high - low)
        position = np.where(np.isfinite(position), position, 0.5) * cells - 0.5
        weight = 1 - np.abs(position[:, None] - np.arange(cells))  # [length, cells]
        weights.append(np.maximum(weight, 0).astype(np.float32))
    rows, columns = weights
    return rows @ mask @ columns.T


def read_image(path):
    """Returns an image file as RGB [H, W, 3], uint8, upright according to its EXIF data."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")
            upright = TRANSPOSE.get(exif_orientation(image))
            image = image if upright is None else image.transpose(upright)
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types
        raise ValueError(f"cannot be read: {error}") from error


def exif_orientation(image):
    """Returns 1 (upright) to 8; invalid EXIF data counts as upright."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # SyntaxError, struct.error and others, depending on the bytes
        return 1


def new_size(height, width, *, scale, keep_ratio):
    """The size after mmdet's Resize; `scale` is (width, height), None keeps the size."""
    if scale is None:
        return height, width
    if not keep_ratio:
        return scale[1], scale[0]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(image, height, width):
    """Resizes exactly like OpenCV's INTER_LINEAR with 8 bits: bilinear between pixel centers,
    without smoothing, in integers of 11 fractional bits (opencv, modules/imgproc/src/resize.cpp).
    """
    if image.shape[:2] == (height, width):
        return image
    left, right, left_weight, right_weight = neighbors(image.shape[1], width)
    inside = (left >= 0) & (right < image.shape[1])  # at the edges only one pixel counts
    left_weight = np.where(inside, left_weight, 2048)
    right_weight = np.where(inside, right_weight, 0)
    columns = image.astype(np.int64)
    columns = (
        columns.take(left, 1, mode="clip") * left_weight[:, None]
        + columns.take(right, 1, mode="clip") * right_weight[:, None]
    )
    above, below, *weights = neighbors(image.shape[0], height)
    parts = (
        ((columns.take(rows, 0, mode="clip") >> 4) * weight[:, None, None]) >> 16
        for rows, weight in zip((above, below), weights)
    )
    return ((sum(parts) + 2) >> 2).astype(np.uint8)


def neighbors(length, size):
    """Per new position: the old pixels before and after it, and their weights in 2048ths."""
    position = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
    before = np.floor(position)
    weight = position - before
    before = before.astype(np.int64)
    weights = (np.rint(part * np.float32(2048)).astype(np.int64) for part in (1 - weight, weight))
    return before, before + 1, *weights


def find_images(paths):
    """Returns the given files, and the images in the given directories."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
        else:
            files.append(path)
    if not files:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    return files


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="detector, exported by `ropevit export`")
    parser.add_argument("images", nargs="+", help="image files, or directories with images")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file to write (default: print it)"
    )
    parser.add_argument("--score-thr", type=float, default=0.3, help="lowest score (default: 0.3)")
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="images of one size per call (default: 1, or the number that the file has)",
    )
    parser.add_argument(
        "--provider",
        nargs="+",
        default=["CPUExecutionProvider"],
        metavar="NAME",
        help="of onnxruntime, in the order of preference: CUDAExecutionProvider ... "
        "(default: CPUExecutionProvider)",
    )
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error(f"--batch {args.batch} is not above 0")
    return args


if __name__ == "__main__":
    main()
