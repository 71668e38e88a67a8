"""Detect objects in images with a file of `ropevit export`, without PyTorch or MMDetection.

Self-contained: copy it next to the .onnx file. Needs onnxruntime, numpy and Pillow. Prints
COCO-style JSON, boxes [x, y, width, height] in pixels of the original image. An image that cannot
be used is named and skipped; the exit status is then 1.
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
        detector, images = Detector(args.file), find_images(args.images)
        result, skipped = predict_files(detector, images, args.score_thr)
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

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        fields = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: json.loads(value) for key, value in fields.items()}
        if self.metadata.get("part") != "detector":
            raise ValueError(f"{path} is not a file of `ropevit export --part detector`")
        if self.metadata["resize"] is None:
            raise ValueError(f"the config of {path} does more than resize its test images")

    def predict(self, image):
        """RGB image [H, W, 3], uint8 -> boxes [N, 4] (x1, y1, x2, y2), scores, labels."""
        height, width = image.shape[:2]
        new_height, new_width = new_size(height, width, **self.metadata["resize"])
        long, short = max(height, width), min(height, width)
        if long > MAX_ASPECT * short or 0 in (new_height, new_width):
            raise ValueError(f"is too thin: {width} x {height} pixels")
        image = resize(image, new_height, new_width)
        if self.metadata["channel_order"] == "BGR":
            image = image[:, :, ::-1]
        mean, std = (np.float32(self.metadata[key]) for key in ("mean", "std"))
        image = (image.astype(np.float32) - mean) / std
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None])  # the graph pads it
        boxes, scores, labels = self.session.run(None, {self.session.get_inputs()[0].name: image})
        scale = np.float32([new_width / width, new_height / height] * 2)
        return boxes / scale, scores, labels


def predict_files(detector, paths, score_thr):
    """Returns a COCO-style document: images, categories (ids from 1), annotations with scores.

    And a message for each image that was skipped.
    """
    images, annotations, skipped = [], [], []
    for path in paths:
        try:
            image = read_image(path)
            detections = detector.predict(image)
        except ValueError as error:
            skipped.append(f"image {path} {error}")
            continue
        height, width = image.shape[:2]
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": str(path), "width": width, "height": height})
        for box, score, label in zip(*detections):
            if score < score_thr:
                continue
            x1, y1, x2, y2 = map(float, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    "score": round(float(score), 5),
                }
            )
    names = detector.metadata["class_names"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    return document, skipped


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
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
