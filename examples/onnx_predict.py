"""Detect objects in images with a file of tools/export.py, without PyTorch or MMDetection.

Stands alone: copy it beside the .onnx file. Needs onnxruntime, numpy and Pillow (which only reads
the images). Prints COCO-style JSON, boxes [x, y, width, height] in pixels of the image itself.
"""

import argparse
import json
import os
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from PIL import Image
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; pip install onnxruntime numpy pillow")

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow's; some of others start programs
TURNS = {  # EXIF orientation -> what makes the image upright
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
        detector = Detector(args.file)
        result = predict_files(detector, find_images(args.images), args.score_thr)
        text = json.dumps(result, indent=1) + "\n"
        if args.out is None:
            sys.stdout.write(text)
        else:
            write_beside(Path(args.out), text)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


class Detector:
    """An exported detector and the facts in its file."""

    def __init__(self, path):
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist")
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common base
            raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {error}") from error
        fields = self.session.get_modelmeta().custom_metadata_map
        if "made_by" not in fields:
            raise ValueError(f"{path} was not written by tools/export.py: facts are missing in it")
        self.facts = {key: json.loads(value) for key, value in fields.items()}
        if self.facts["part"] != "detector":
            raise ValueError(f"{path} holds backbone and neck alone: export with --part detector")
        if self.facts["resize"] is None:
            raise ValueError(
                f"the config of {path} does more than resize its test images; this program "
                "does not know how"
            )

    def predict(self, image):
        """Detections in an RGB image [H, W, 3], uint8: boxes [N, 4] (x1, y1, x2, y2), scores,
        labels; best first.
        """
        height, width = image.shape[:2]
        new_height, new_width = new_size(height, width, **self.facts["resize"])
        if 0 in (new_height, new_width):
            raise ValueError(
                f"an image of {width} x {height} pixels is too thin: made smaller, it has no "
                "pixel left"
            )
        image = resized(image, new_height, new_width)
        if self.facts["channel_order"] == "BGR":
            image = image[:, :, ::-1]
        mean, std = (np.float32(self.facts[key]) for key in ("mean", "std"))
        image = (image.astype(np.float32) - mean) / std
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None])  # the file pads it
        boxes, scores, labels = self.session.run(None, {self.session.get_inputs()[0].name: image})
        scale = np.float32([new_width / width, new_height / height] * 2)
        return boxes / scale, scores, labels


def predict_files(detector, paths, score_thr):
    """A COCO-style document: images, categories (ids from 1), annotations with scores."""
    images, annotations = [], []
    for path in paths:
        image = read_image(path)
        height, width = image.shape[:2]
        images.append(
            {"id": len(images) + 1, "file_name": str(path), "width": width, "height": height}
        )
        try:
            found = detector.predict(image)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for box, score, label in zip(*found):
            if score < score_thr:
                continue
            x1, y1, x2, y2 = map(float, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": int(label) + 1,
                    "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    "score": round(float(score), 5),
                }
            )
    names = detector.facts["class_names"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def read_image(path):
    """An image file as RGB [H, W, 3], uint8, turned upright as its EXIF data says."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            turn = TURNS.get(exif_orientation(image))
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")
            upright = image if turn is None else image.transpose(turn)
            return np.asarray(upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders meet any bytes: anything can come out of them
        raise ValueError(f"image {path} cannot be read: {error}") from error


def exif_orientation(image):
    """1 (upright) to 8, as OpenCV has it: of EXIF data alone, never XMP; damaged, it is upright."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # SyntaxError, struct.error and others, by where it is damaged
        return 1


def new_size(height, width, *, scale, keep_ratio):
    """The size that mmdet's Resize gives an image; `scale` is (width, height), None: as it is."""
    if scale is None:
        return height, width
    if not keep_ratio:
        return scale[1], scale[0]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resized(image, height, width):
    """To the digit what OpenCV's INTER_LINEAR makes of 8 bits: bilinear between pixel centres,
    without smoothing, in integers of 11 fractional bits (opencv, modules/imgproc/src/resize.cpp).
    """
    if image.shape[:2] == (height, width):
        return image
    left, right, left_share, right_share = neighbours(image.shape[1], width)
    inside = (left >= 0) & (right < image.shape[1])  # at the sides one pixel alone counts
    left_share = np.where(inside, left_share, 2048)
    right_share = np.where(inside, right_share, 0)
    columns = image.astype(np.int64)
    columns = (
        columns.take(left, 1, mode="clip") * left_share[:, None]
        + columns.take(right, 1, mode="clip") * right_share[:, None]
    )
    above, below, *shares = neighbours(image.shape[0], height)
    parts = (
        ((columns.take(rows, 0, mode="clip") >> 4) * share[:, None, None]) >> 16
        for rows, share in zip((above, below), shares)
    )
    return ((sum(parts) + 2) >> 2).astype(np.uint8)


def neighbours(length, size):
    """For every place of the new side: the old pixels before and after it, maybe beyond the ends,
    and their shares in 2048ths.
    """
    place = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
    before = np.floor(place)
    share = place - before
    before = before.astype(np.int64)
    shares = (np.rint(part * np.float32(2048)).astype(np.int64) for part in (1 - share, share))
    return before, before + 1, *shares


def find_images(paths):
    """The files named, and the images in the directories named."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            files = (file for file in path.iterdir() if file.is_file())
            found += sorted(file for file in files if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"image {path} does not exist")
    if not found:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    return found


def write_beside(path, text):
    """Write a file under another name, then rename it: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="detector, exported by tools/export.py")
    parser.add_argument("images", nargs="+", help="image files, or directories of them")
    parser.add_argument("--out", metavar="FILE", help="JSON file to write (default: print it)")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="leave out lower scores (default: 0.3)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
