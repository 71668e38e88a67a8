"""Prediction of files: what is written, and files that cannot be used among others that can."""

import contextlib
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO

from ropevit_mmdet._images import Video, VideoWriter, find_images
from ropevit_mmdet.apis import predict_files
from ropevit_mmdet.errors import UserError
from tests.commands import ropevit
from tests.tiny_coco import write_tiny


def two_squares(image):
    """Two objects, the worse one with an empty mask."""
    masks = torch.zeros(2, *image.shape[:2], dtype=torch.bool)
    masks[0, 2:6, 3:9] = True
    boxes = torch.tensor([[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 5.0, 5.0]])
    scores, labels = torch.tensor([0.9, 0.4]), torch.tensor([1, 0])
    return InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)


class Fake:
    """A detector of what a function finds."""

    classes = ("dark", "light")

    def __init__(self, objects=two_squares):
        self.objects = objects

    def prepare(self, image, name):
        return image

    def detect(self, prepared, *, score_thr):
        return [DetDataSample(pred_instances=self.objects(one)) for one in prepared]


def write_video(path, values):
    """A frame of one brightness for each value."""
    writer = VideoWriter(path, 12.5)
    for value in values:
        writer.write(np.full((48, 66, 3), value, np.uint8))
    writer.close()


def written(directory):
    return json.loads((directory / "predictions.json").read_text())


def test_results_load_in_pycocotools(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    out, files = tmp_path / "out", find_images([tmp_path])
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "kept.png").touch()
    assert predict_files(Fake(), files, out, batch_size=3) == (4, [])
    names = sorted(path.name for path in (out / "overlays").iterdir())
    assert names == ["a.png", "b.jpg", "kept.png"]
    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO(out / "predictions.json")
    assert results.loadCats([2]) == [{"id": 2, "name": "light"}]
    assert results.imgs[2]["file_name"].endswith("b.jpg")
    masked = results.loadAnns(results.getAnnIds(imgIds=[2], catIds=[2]))[0]
    assert masked["bbox"] == [3, 2, 6, 4] and masked["score"] == 0.9 and masked["area"] == 24
    mask = results.annToMask(masked)
    assert mask.shape == (10, 20) and mask[2:6, 3:9].all() and mask.sum() == 24


def test_classes_and_top_k_filter_detections(tmp_path):
    files, out = [tmp_path / "a.png"], tmp_path / "out"
    Image.new("RGB", (20, 10)).save(files[0])
    cases = [(dict(top_k=1), [2]), (dict(classes=["dark"]), [1])]
    for settings, expected in [*cases, (dict(classes=["dark"], top_k=1), [1])]:
        predict_files(Fake(), files, out, **settings)
        assert [one["category_id"] for one in written(out)["annotations"]] == expected
    panoptic, gone = Fake(), [tmp_path / "b.png"]
    panoptic.detect = lambda images, **_: [DetDataSample() for _ in images]
    for detector, paths, classes, message in (
        (Fake(), files, ["red"], r"no class \['red'\]; its classes: \['dark', 'light'\]"),
        (Fake(), gone, None, r"b\.png cannot be read"),
        (panoptic, files, None, "finds no instances: set test_cfg.instance_on"),
    ):
        with pytest.raises(UserError, match=message):
            predict_files(detector, paths, tmp_path / "new", classes=classes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("settings", [{}, dict(classes=["light"])])
def test_masks_are_not_copied(tmp_path, settings):
    """Of 40 masks of a megapixel; PyTorch's memory is not traced."""

    def many(image):
        masks = torch.zeros(40, *image.shape[:2], dtype=torch.bool)
        masks[:, 100:300, 200:400] = True
        boxes = torch.tensor([[200.0, 100.0, 400.0, 300.0]]).repeat(40, 1)
        labels, scores = (torch.arange(40) > 0).long(), torch.linspace(0.9, 0.5, 40)
        return InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)

    Image.new("RGB", (1250, 800)).save(tmp_path / "a.png")
    predict_files(Fake(), [tmp_path / "a.png"], tmp_path / "out")  # imports
    tracemalloc.start()
    number, _ = predict_files(Fake(many), [tmp_path / "a.png"], tmp_path / "out", **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == (39 if settings else 40) and peak < 40e6 / 2


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_a_video_gives_a_video_and_frames_in_the_json(tmp_path, every, expected):
    path, out = tmp_path / "clip.avi", tmp_path / "out"
    write_video(path, range(20, 201, 30))
    Image.new("RGB", (20, 10), (250, 250, 250)).save(tmp_path / "still.png")
    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:100])

    def brightness(image):  # as the score of an object
        box, scores = torch.tensor([[1.0, 1.0, 9.0, 6.0]]), torch.tensor([image.mean() / 1000])
        return InstanceData(bboxes=box, labels=torch.tensor([0]), scores=scores)

    files = find_images([path, tmp_path / "broken.mp4", tmp_path / "still.png"])
    number, (skipped,) = predict_files(Fake(brightness), files, out, every=every, batch_size=2)
    assert number == len(expected) + 1 and "broken.mp4 cannot be read" in skipped
    results = written(out)
    assert [image.get("frame") for image in results["images"]] == [*expected, None]
    assert [image["width"] for image in results["images"]] == [66] * len(expected) + [20]
    scores = [one["score"] * 1000 for one in results["annotations"]]
    assert scores == pytest.approx([20 + 30 * n for n in expected] + [250], abs=4)  # compressed
    overlay = Video(out / "overlays" / "clip.mp4")
    frames = [frame for _, frame in overlay.frames()]
    assert overlay.fps == pytest.approx(12.5 / every, rel=1e-3) and len(frames) == len(expected)
    assert frames[-1].shape[1] == 924 and abs(frames[-1][-20, -20].mean() - 200) < 6
    assert (out / "overlays" / "still.png").exists()


def test_a_video_that_cannot_be_used_is_skipped_as_one_file(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "still.png")
    write_video(tmp_path / "clip.avi", [0, 0, 0])
    detector = Fake()

    def prepare(image, name):
        if name.suffix == ".avi":
            raise UserError(f"image {name} is too thin")
        return image

    detector.prepare = prepare
    files = find_images([tmp_path / "clip.avi", tmp_path / "still.png"])
    number, (skipped,) = predict_files(detector, files, tmp_path / "out")
    assert number == 2 and "clip.avi is too thin" in skipped


def test_the_command_skips_and_names_files_that_it_cannot_use(saved, tmp_path, capsys):
    images, out = write_tiny(tmp_path).parent / "data" / "images", tmp_path / "out"
    (images / "directory.png").mkdir()
    Image.new("RGB", (400, 2)).save(images / "thin.png")
    (images / "truncated.png").write_bytes((images / "1.png").read_bytes()[:1000])
    argv = ["predict", *saved, images, "--out-dir", out, "--batch-size", "3", "--score-thr", "0"]
    assert ropevit(*argv) == 1
    output, errors = capsys.readouterr()
    skipped = [line for line in errors.splitlines() if line.startswith("skipped: ")]
    messages = ("directory.png cannot be read: ", "thin.png is more than 100 times as long as wide",
                "truncated.png cannot be read: ")  # fmt: skip
    for line, message in zip(skipped, messages, strict=True):
        assert message in line
    expected = {f"{i}.png" for i in (1, 2, 3, 4)}
    assert {Path(image["file_name"]).name for image in written(out)["images"]} == expected
    assert {file.name for file in (out / "overlays").iterdir()} == expected
    assert "40 objects in 4 files" in output


def test_the_command_reports_the_score_of_the_config(saved, tmp_path, capsys):
    config, checkpoint = saved
    argv = ["predict", checkpoint, config.parent / "data" / "images" / "1.png"]
    options = ["--score-thr", "0", "--cfg-options", "model.test_cfg.score_thr=1.0"]
    assert ropevit(*argv, "--out-dir", tmp_path / "out", *options) == 0
    output = capsys.readouterr().out
    assert "0 objects in 1 file," in output and "score_thr drops scores below 1.0" in output
