"""Finding image files, and videos frame by frame; reading images is in test_validation."""

import numpy as np
import pytest
from PIL import Image

from ropevit_mmdet._images import (
    Video,
    VideoWriter,
    count_images,
    find_images,
    overlay_name,
    read_images,
)
from ropevit_mmdet.errors import UserError


def test_files_directories_and_patterns(tmp_path):
    a, b, other = tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "sub" / "c.png"
    other.parent.mkdir()
    for path in (b, a, other):
        Image.new("RGB", (8, 6)).save(path)
    for name in ("notes.txt", "._a.jpg"):  # the second as macOS adds it to archives
        (tmp_path / name).touch()
    assert find_images([tmp_path, a]) == [a, b]
    assert find_images([tmp_path / "?.*"]) == [a, b]
    assert find_images([tmp_path / "**" / "*.png"]) == [b, other]
    assert [overlay_name(path) for path in (a, b)] == ["a.jpg", "b.png"]
    assert [one.pixels.shape for one in read_images([a, b])] == [(6, 8, 3)] * 2
    Image.new("RGB", (8, 6)).save(other.with_name("b.png"))
    for path, message in (
        (tmp_path / "*.txt", "contains no images"),
        (tmp_path / "gone.png", r"gone\.png does not exist"),
        (other.parent, "overlays of one name"),
    ):
        with pytest.raises(UserError, match=message):
            find_images([tmp_path, path])


def test_videos(tmp_path):
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, 10)
    for index in range(6):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.close()
    assert find_images([tmp_path]) == [path] and overlay_name(path) == "clip.mp4"
    assert (Video(path).fps, Video(path).length) == (10, 6)
    frames = list(read_images([path], every=4))
    assert [one.frame for one in frames] == [0, 4] and count_images([path], every=4) == 2
    assert abs(frames[1].pixels.mean() - 160) < 5
    with pytest.raises(UserError, match=r"clip\.mp4 does not exist or contains no images"):
        find_images([path], videos=False)
    with pytest.raises(UserError, match="contains no images"):
        find_images([tmp_path], videos=False)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"clip\.mp4 cannot be read"):
        next(read_images([path]))
