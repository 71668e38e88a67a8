"""Finds and reads image and video files as RGB arrays."""

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ropevit_mmdet.errors import UserError

SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # not EPS: it runs Ghostscript
MAX_ASPECT = 100  # of the sides: smaller than this, resizing can leave no pixel
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_FOREIGN = re.compile(r"(\w+:)?/|\.\./")  # begins a path of another machine
_SAMPLE = 20  # names that decide which directory has the images of an annotation file


@dataclass(frozen=True)
class InputImage:
    """An image of a file, or a frame of a video: RGB [H, W, 3], uint8."""

    path: Path
    pixels: np.ndarray
    frame: int | None = None  # index of the frame, from 0


def find_images(paths: Sequence[str | os.PathLike[str]], *, videos: bool = True) -> list[Path]:
    """Expands files, directories and patterns (`*`, `**`) to image and video files, sorted.

    Raises `UserError` for a path without files, and for two overlays of the same name.
    """
    suffixes = SUFFIXES + VIDEO_SUFFIXES if videos else SUFFIXES
    files = [file for path in paths for file in _expand(Path(path), suffixes)]
    overlays: dict[str, Path] = {}
    for path in files:
        other = overlays.setdefault(overlay_name(path), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would have overlays of one name; use two output directories"
            )
    return list(overlays.values())


def is_video(path: Path) -> bool:
    """Whether a file has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def overlay_name(path: Path) -> str:
    """File name of an overlay: JPEG for JPEG files, MP4 for videos, else PNG."""
    if is_video(path):
        return f"{path.stem}.mp4"
    return path.name if path.suffix.lower() in (".jpg", ".jpeg") else f"{path.stem}.png"


def check_aspect(shape: Sequence[int], name: object) -> None:
    """Raises `UserError` for an image so thin that resizing could leave no pixel."""
    if max(shape[:2]) > MAX_ASPECT * min(shape[:2]):
        raise UserError(f"image {name} is more than {MAX_ASPECT} times as long as wide")


def count_images(paths: Sequence[Path], every: int = 1) -> int:
    """Number of images that `read_images` yields, according to the headers of readable videos."""
    total = 0
    for path in paths:
        with suppress(UserError):
            total += -(-Video(path).length // every) if is_video(path) else 1
    return total


def read_images(paths: Iterable[Path], every: int = 1) -> Iterator[InputImage]:
    """Yields the images of files in order, and each `every`-th frame of videos."""
    for path in paths:
        if is_video(path):
            for frame, pixels in Video(path).frames(every):
                yield InputImage(path, pixels, frame)
        else:
            yield InputImage(path, read_image(path))


def image_directory(ann_file: Path, img_dir: Path, names: Sequence[str]) -> Path:
    """The directory of the images of a COCO annotation file, by some of their `file_name`s.

    It is `img_dir`, or if that has none of the files a directory next to the annotation file: the
    layouts of COCO, Roboflow, CVAT, Label Studio and FiftyOne.
    """
    stem = ann_file.stem
    splits = dict.fromkeys((stem.removeprefix("instances_"), *reversed(stem.split("_"))))
    near = [
        base / directory
        for base in (ann_file.parent, ann_file.parent.parent)
        for directory in (*splits, *(f"images/{split}" for split in splits), "images", "data", "")
    ]
    sample = names[:_SAMPLE]
    found = (one for one in (img_dir, *near) if any(_existing(one, name) for name in sample))
    return next(found, img_dir)


def locate_images(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    r"""The files of a directory by the `file_name`s of a COCO annotation file.

    A name that no file has may have `\` for `/`, `%20` for a space, or begin with directories of
    another machine. A missing file is `directory / name`.
    """
    unusual = [name for name in names if len(name_forms(name)) > 1]
    resolved = {name: _existing(directory, name) for name in unusual}
    uses = Counter(resolved.values())  # a file of two names is the end of both by chance
    resolved = {name: path for name, path in resolved.items() if path and uses[path] == 1}
    return {name: resolved.get(name) or directory / name for name in names}


def name_forms(name: str) -> list[str]:
    """The names that a `file_name` stands for, itself first."""
    path = unquote(name).replace("\\", "/")
    parts = path.split("/") if _FOREIGN.match(path) else [path]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    composed = (unicodedata.normalize(form, end) for end in ends for form in ("NFC", "NFD"))
    return list(dict.fromkeys(form for form in (name, *ends, *composed) if form))


def ids_by_name(images: Iterable[Mapping[str, Any]]) -> dict[Path, Any]:
    """Image ids of an annotation file by `file_name` in every form that only one image has."""
    ids: dict[Path, set[Any]] = {}
    exact = {}
    for one in images:
        exact[Path(one["file_name"])] = one["id"]
        for form in name_forms(one["file_name"]):
            ids.setdefault(Path(form), set()).add(one["id"])
    return {form: owners.pop() for form, owners in ids.items() if len(owners) == 1} | exact


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Opens a file of one of `FORMATS` and reads its header. Raises as `PIL.Image.open`."""
    return Image.open(path, formats=FORMATS)


def read_image(source: str | os.PathLike[str] | Image.Image, name: object = None) -> np.ndarray:
    """Reads an image as RGB [H, W, 3], uint8, like mmcv's `LoadImageFromFile` with OpenCV.

    Alpha is dropped, 16 bits are reduced to their upper 8, and the EXIF orientation is applied.
    Raises `UserError`, with the image's `name` or path, if the file cannot be decoded.
    """
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with open_image(source) as image:
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many types
        name = source if name is None else name
        raise UserError(f"image {name} cannot be read: {why_unreadable(error)}") from error


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of an open image, 1 (upright) to 8; 1 if its EXIF data is invalid."""
    if image.format == "PNG":
        image.info.setdefault("exif", b"")  # without it Pillow decodes the image to find one
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # SyntaxError, struct.error and others
        return 1
    return value if value in range(1, 9) else 1  # cameras write 0 for "unknown"


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an open image after its EXIF rotation."""
    size = image.height, image.width
    return size[::-1] if exif_orientation(image) >= 5 else size


def why_unreadable(error: Exception) -> str:
    """The reason in an exception of Pillow's, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or truncated"
    return " ".join(str(error).split()) or type(error).__name__


class Video:
    """A video file, decoded by OpenCV: frames per second, and length according to the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = cv2.VideoCapture(str(path))
        self.fps = capture.get(cv2.CAP_PROP_FPS)
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        readable = capture.read()[0]
        capture.release()
        if not readable or not 0 < self.fps < 1000:
            raise UserError(f"video {path} cannot be read: truncated or without frames")

    def frames(self, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Yields index, from 0, and RGB pixels [H, W, 3] of each `every`-th frame."""
        capture, index = cv2.VideoCapture(str(self.path)), 0
        while capture.grab():
            if index % every == 0:
                yield index, cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            index += 1
        capture.release()


class VideoWriter:
    """Writes RGB frames [H, W, 3] of one size as MP4 (MPEG-4 part 2); call `close` at the end."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer = cv2.VideoWriter()

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame. Raises `OSError` if OpenCV cannot encode or write the file."""
        if not self._writer.isOpened():
            code, size = cv2.VideoWriter.fourcc(*"mp4v"), frame.shape[1::-1]
            if not self._writer.open(str(self.path), code, self.fps, size):
                raise OSError(f"OpenCV cannot write the video {self.path}")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Completes the file."""
        self._writer.release()


def _to_rgb(image: Image.Image) -> np.ndarray:
    image.load()
    if exif_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _expand(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path stands for: a file of any suffix, a directory or a pattern."""
    if path.is_file() and (".mp4" in suffixes or not is_video(path)):
        return [path]
    inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    try:
        found = (file for file in inside if file.suffix.lower() in suffixes)
        files = sorted(file for file in found if not file.name.startswith("."))  # ._a.jpg of macOS
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error.strerror}") from error
    if not files:
        raise UserError(f"{path} does not exist or contains no images ({', '.join(suffixes)})")
    return files


def _existing(directory: Path, name: str) -> Path | None:
    paths = (directory / form for form in name_forms(name))
    return next((path for path in paths if path.is_file()), None)
