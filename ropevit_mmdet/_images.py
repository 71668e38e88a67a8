"""Find and read what a detector is to look at: image files, directories, patterns, videos."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of Pillow's formats, those that images have, common ones first. Others are not opened, whatever
# a file's name is: EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
FORMATS += ("DDS", "DIB", "ICNS", "ICO", "PCX", "PSD", "QOI", "SGI", "SUN", "TGA")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
MAX_PIXELS = 178_956_970  # of an image: where Pillow refuses what may be a decompression bomb
_EXTRA_SAMPLES = 338  # tag of a TIFF file: what its channels beyond the colors are
_TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class InputImage:
    """What a detector looks at: RGB [H, W, 3], uint8, of a file, or of a frame of a video."""

    path: Path
    pixels: np.ndarray
    frame: int | None = None  # from 0


def find_images(paths: Sequence[str | os.PathLike[str]], *, videos: bool = True) -> list[Path]:
    """The files named, those in the directories named and those that patterns fit, by name.

    In directories and by patterns (`*`, `?`, `[...]`, and `**` for directories at any depth) only files
    with the suffix of an image or a video are found. Raises ValueError for a path that is not
    there, a directory or pattern without images, two files whose overlays would have one name, and
    without `videos` for a video.
    """
    suffixes = SUFFIXES + VIDEO_SUFFIXES if videos else SUFFIXES
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isfile(path):  # no error for a name that is too long
            if is_video(path) and not videos:
                raise ValueError(f"{path} is a video, and images are needed here")
            found.append(path)
        elif os.path.isdir(path):
            found += _known(path.iterdir(), suffixes, f"directory {path} holds")
        elif glob.has_magic(str(path)):
            matches = map(Path, glob.glob(str(path), recursive=True))
            found += _known(matches, suffixes, f"pattern {path} fits")
        else:
            raise ValueError(f"image {path} does not exist")
    overlays: dict[str, Path] = {}
    for path in dict.fromkeys(found):
        other = overlays.setdefault(overlay_name(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would have overlays of one name; predict them into two directories"
            )
    return list(overlays.values())


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def overlay_name(path: Path) -> str:
    """JPEG files have JPEG overlays, videos MP4 ones; all others PNG, under the file's name."""
    if is_video(path):
        return f"{path.stem}.mp4"
    return path.name if path.suffix.lower() in (".jpg", ".jpeg") else f"{path.stem}.png"


def check_readable(path: Path) -> None:
    """Read an image, or the first frame of a video, for its errors alone."""
    if is_video(path):
        next(Video(path).frames())
    else:
        read_image(path)


def count_images(paths: Sequence[Path], every: int = 1) -> int:
    """How many `read_images` will give; videos by the number of frames that they announce."""
    return sum(-(-Video(path).length // every) if is_video(path) else 1 for path in paths)


def read_images(paths: Iterable[Path], every: int = 1) -> Iterator[InputImage]:
    """The images of files in their order, of videos each `every`-th frame from the first on.

    Raises ValueError as `read_image` and `Video.frames`.
    """
    for path in paths:
        if is_video(path):
            for frame, pixels in Video(path).frames(every):
                yield InputImage(path, pixels, frame)
        else:
            yield InputImage(path, read_image(path))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open a file of one of `FORMATS` and read its header, as `Image.open`, whose errors it has."""
    Image.init()
    return Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as RGB [H, W, 3], uint8, turned upright as its EXIF data says.

    Colors are those that a training sees, which reads by OpenCV: alpha is dropped, in TIFF files
    that declare it laid over black; of 16 bits the upper 8 are taken. CMYK may differ by 1. OpenCV
    does not read 32 bits; here they are 0 to 255, or 0 to 65535 if integers and above 255.

    Raises ValueError, naming the file, if it cannot be decoded, has no pixels, holds NaN or has
    more than `MAX_PIXELS`.
    """
    try:
        with open_image(path) as image:
            if odd_maxval(image):
                return _read_by_opencv(path)
            image.load()
            turn = _TURNS.get(exif_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            deep = upright.mode[0] in "IF"  # one channel of 16 or 32 bits
            sixteen = upright.mode.startswith("I;16") or (deep and image.format == "PPM")
            if upright.mode == "RGBA" and image.format == "TIFF" and _EXTRA_SAMPLES in image.tag_v2:
                black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
                upright = Image.alpha_composite(black, upright)
            pixels = np.asarray(upright if deep else upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders meet any bytes: anything can come out of them
        raise ValueError(f"image {path} cannot be read: {why_unreadable(error)}") from error
    if pixels.size == 0:
        raise ValueError(f"image {path} has no pixels")
    if not deep:
        return pixels
    if not np.isfinite(pixels).all():
        raise ValueError(f"image {path} holds NaN or infinite values")
    if sixteen:
        pixels = pixels // 256
    elif pixels.dtype.kind in "iu" and pixels.max() > 255:
        pixels = pixels / 257.0  # 65535 -> 255, where Pillow's own conversion would clip
    gray = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def exif_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an open image, 1 (upright) to 8; None if its EXIF data is damaged.

    From EXIF alone, as OpenCV does, never from XMP or the text that ImageMagick writes into PNG
    files; damaged data is upright to OpenCV.
    """
    for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        image.info.pop(key, None)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # SyntaxError, struct.error and others, by where it is damaged
        return None
    return orientation if orientation in range(1, 9) else 1


def odd_maxval(image: Image.Image) -> int | None:
    """The highest value of a PGM or PPM file just opened, if it is not that of 8 or 16 bits.

    Pillow scales values by it, OpenCV leaves them as they are.
    """
    decoding = image.tile[0][3] if image.format == "PPM" and image.mode != "F" else ""
    maxval = decoding[1] if isinstance(decoding, tuple) else 255
    return None if maxval in (255, 65535) else maxval


def why_unreadable(error: Exception) -> str:
    """What an error of Pillow's means, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or truncated"
    return " ".join(str(error).split()) or type(error).__name__


class Video:
    """A video file, read by OpenCV; `fps` frames a second, `length` frames as the file announces.

    Raises ValueError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = self._open()
        self.fps = capture.get(cv2.CAP_PROP_FPS)
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()
        if not 0 < self.fps < 1000:
            raise ValueError(f"video {path} does not say how many frames a second it has")

    def frames(self, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Number, from 0, and RGB pixels [H, W, 3] of each `every`-th frame.

        Raises ValueError for a video without frames, and for one whose frames change their size.
        """
        capture, number, shape = self._open(), 0, None
        try:
            while capture.grab():
                if number % every == 0:
                    read, frame = capture.retrieve()
                    if not read:
                        raise ValueError(f"video {self.path}: frame {number} cannot be decoded")
                    shape = shape or frame.shape
                    if frame.shape != shape:
                        raise ValueError(
                            f"video {self.path}: frame {number} is {_size(frame.shape)} pixels, "
                            f"the first one {_size(shape)}"
                        )
                    yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            capture.release()
        if number == 0:
            raise ValueError(f"video {self.path} has no frames that can be read")

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise ValueError(f"video {self.path} cannot be read: not a video, or truncated")
        return capture


class VideoWriter:
    """Writes RGB frames [H, W, 3] of one size as MP4 (MPEG-4 part 2); `close` it in the end."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame; raises OSError if OpenCV has no encoder or cannot write the file."""
        if self._writer is None:
            size = frame.shape[1], frame.shape[0]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, size)
            if not self._writer.isOpened():
                raise OSError(f"OpenCV cannot write the video {self.path}")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


def _known(paths: Iterable[Path], suffixes: tuple[str, ...], found: str) -> list[Path]:
    """The files with one of the suffixes, in order of name; ValueError if there is none."""
    known = sorted(path for path in paths if path.suffix.lower() in suffixes)
    if not known:
        raise ValueError(f"{found} no images ({', '.join(suffixes)})")
    return known


def _read_by_opencv(path: str | os.PathLike[str]) -> np.ndarray:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("OpenCV cannot decode it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
