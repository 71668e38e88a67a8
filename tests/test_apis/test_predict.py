"""Prediction: the same detections as mmdet, in image coordinates, and the files written."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO

from ropevit_mmdet._images import Video, VideoWriter, find_images, read_image
from ropevit_mmdet.apis import Detector, GroundTruth, choose_device, predict_files
from ropevit_mmdet.engine.config import build_detector, load_config
from tests.commands import fails, ropevit
from tests.tiny_coco import write_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The config and checkpoint of a detector with random weights."""
    directory = tmp_path_factory.mktemp("detector")
    path = write_tiny(directory)
    torch.manual_seed(0)
    model = build_detector(load_config(path))
    model.init_weights()
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight)  # scores that differ
    meta = {"dataset_meta": {"classes": ("dark", "light")}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, directory / "tiny.pth")
    return path, directory / "tiny.pth"


class TwoSquares:
    """A fake detector: two objects in every image, the worse one with an empty mask."""

    names = ("dark", "light")

    def predict(self, images, *, score_thr):
        masks = torch.zeros(2, *images[0].shape[:2], dtype=torch.bool)
        masks[0, 2:6, 3:9] = True
        boxes = torch.tensor([[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 5.0, 5.0]])
        scores, labels = torch.tensor([0.9, 0.4]), torch.tensor([1, 0])
        found = InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)
        return [found[scores >= score_thr] for _ in images]


class Brightness(TwoSquares):
    """A fake detector: one object in every image, its score is the brightness."""

    def predict(self, images, *, score_thr):
        box, label = torch.tensor([[1.0, 1.0, 9.0, 6.0]]), torch.tensor([0])
        scores = [torch.tensor([one.mean() / 1000]) for one in images]
        return [InstanceData(bboxes=box, labels=label, scores=score) for score in scores]


def written(directory):
    return json.loads((directory / "predictions.json").read_text())


def test_detections_equal_those_of_mmdet_on_images_of_unequal_size(saved):
    config_path, checkpoint = saved
    files = find_images([config_path.parent / "data" / "images"])
    ours = Detector(load_config(config_path), str(checkpoint), "cpu")
    batch = ours.predict([read_image(file) for file in files], score_thr=0.0)
    singles = [ours.predict([read_image(file)], score_thr=0.0)[0] for file in files]
    model = init_detector(str(config_path), str(checkpoint), device="cpu", palette="random")
    for file, single, batched in zip(files, singles, batch, strict=True):
        theirs = inference_detector(model, str(file)).pred_instances
        for key in ("labels", "bboxes", "scores"):
            expected = theirs[key].cpu()
            torch.testing.assert_close(single[key], expected)
            torch.testing.assert_close(batched[key], expected, rtol=1e-4, atol=1e-3)
        threshold = float(single.scores[4])
        above = ours.predict([read_image(file)], score_thr=threshold)[0]
        assert above.scores.tolist() == [one for one in single.scores.tolist() if one >= threshold]


@pytest.mark.parametrize("name", ["meta", "tpu9", "cuda:99"])
def test_unusable_devices_are_an_error_of_one_line(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here: .") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_results_load_in_pycocotools(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    out, files = tmp_path / "out", find_images([tmp_path])
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "kept.png").touch()
    assert predict_files(TwoSquares(), files, out, score_thr=0.3, batch_size=3) == 4
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
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    cases = [(dict(top_k=1), [2]), (dict(classes=["dark"]), [1])]
    for settings, expected in [*cases, (dict(classes=["dark"], top_k=1), [1])]:
        predict_files(TwoSquares(), [tmp_path / "a.png"], tmp_path / "out", **settings)
        assert [one["category_id"] for one in written(tmp_path / "out")["annotations"]] == expected
    with pytest.raises(ValueError, match=r"no class \['red'\]; its classes: \['dark', 'light'\]"):
        predict_files(TwoSquares(), [], tmp_path / "new", classes=["red"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_a_video_gives_a_video_and_frames_in_the_json(tmp_path, every, expected):
    path = tmp_path / "clip.avi"
    writer = VideoWriter(path, 12.5)
    for index in range(7):
        writer.write(np.full((48, 66, 3), 20 + 30 * index, np.uint8))
    writer.close()
    Image.new("RGB", (20, 10), (250, 250, 250)).save(tmp_path / "still.png")
    out, totals = tmp_path / "out", []

    def progress(items, total):
        totals.append(total)
        return items

    files = find_images([path, tmp_path / "still.png"])
    settings = dict(every=every, batch_size=2, progress=progress)
    number = predict_files(Brightness(), files, out, **settings)
    assert number == len(expected) + 1 == totals[0]
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


def test_an_unreadable_image_leaves_earlier_results(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    out, (good, bad) = tmp_path / "out", find_images([tmp_path])
    predict_files(TwoSquares(), [good], out)
    before = written(out)
    with pytest.raises(ValueError, match=r"b\.png"):
        predict_files(TwoSquares(), [good, bad], out, score_thr=0.9)
    assert written(out) == before


def test_ground_truth_is_rendered_next_to_the_prediction(tmp_path):
    write_tiny(tmp_path, categories=("light", "extra"), classes=("light", "extra"))
    data = tmp_path / "data"
    Image.new("RGB", (64, 48)).save(data / "images" / "other.png")
    truth = GroundTruth(data / "annotations.json", ("dark", "light"))
    assert truth.names == ("dark", "light", "extra")
    files = find_images([data / "images"])
    assert truth.count_known(files) == 4
    one = truth.of(files[0])  # "light" is the first category of the file
    assert (one.bboxes.tolist(), one.labels.tolist()) == ([[20, 10, 44, 30]], [2])
    assert one.masks.sum() == 480 and one.masks[0, 10:30, 20:44].all()
    predict_files(TwoSquares(), files, tmp_path / "out", truth=truth)
    sizes = {file.name: read_image(file).shape for file in (tmp_path / "out/overlays").iterdir()}
    assert sizes["other.png"] == (720, 960, 3) and sizes["1.png"] == (840, 2 * 960, 3)


def test_ground_truth_matches_the_longest_end_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "blob")
    names = ["1.png", "b/1.png", str(tmp_path / "absolute.png"), "../outside.png", "linked.png"]
    size = dict(height=20, width=30)
    images = [dict(id=i, file_name=name, **size) for i, name in enumerate(names)]
    box = dict(category_id=1, bbox=[1, 2, 3, 4])
    annotations = [dict(box, image_id=i, iscrowd=int(i == 0)) for i in range(5)]
    content = dict(images=images, categories=[dict(id=1, name="one")], annotations=annotations)
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = GroundTruth(tmp_path / "a.json")
    paths = [tmp_path / "b" / "1.png", *map(Path, ("absolute.png", "../outside.png", "linked.png"))]
    assert truth.count_known(paths) == 4
    assert [truth.of(path).bboxes.tolist() for path in paths] == [[[1, 2, 4, 6]]] * 4
    assert len(truth.of(tmp_path / "c" / "1.png")) == 0  # only a crowd
    assert truth.of(tmp_path / "2.png") is None


def test_the_command_writes_overlays_and_results(saved, tmp_path, capsys):
    config, checkpoint = saved
    data = config.parent / "data"
    argv = ["predict", config, checkpoint, data / "images", "--out-dir", tmp_path / "out"]
    argv += ["--score-thr", "0", "--device", "cpu"]
    truth = ["--ann-file", data / "annotations.json"]
    ropevit(*argv, "--batch-size", "3", *truth)
    results = written(tmp_path / "out")
    assert len(results["images"]) == 4 and len(results["annotations"]) == 40
    assert "40 objects in 4 images, scores of 0.0 and up" in capsys.readouterr().out
    torch.save(torch.load(checkpoint)["state_dict"], tmp_path / "bare.pth")  # no class names
    argv[2] = tmp_path / "bare.pth"
    ropevit(*argv, "--cfg-options", "model.test_cfg.score_thr=1.0")
    assert written(tmp_path / "out")["categories"] == results["categories"]
    output = capsys.readouterr().out
    assert "0 objects" in output and "score_thr drops scores below 1.0" in output


def test_the_command_checks_the_output_directory_first(tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["predict", "gone.py", "gone.pth", "gone.png", "--out-dir", tmp_path / "file"]
    assert f"{tmp_path / 'file'} is a file" in fails(capsys, *argv)
