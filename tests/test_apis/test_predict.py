"""Prediction: what is read, what comes out in image coordinates, and what is written."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

from ropevit_mmdet._images import Video, VideoWriter, find_images, is_video, read_image
from ropevit_mmdet._output import output_directory
from ropevit_mmdet.apis.ground_truth import GroundTruth
from ropevit_mmdet.apis.predict import Predictor, choose_device, lowest_score, predict_files
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.visualization.overlays import Detection
from tests.test_cli.test_tools import fails, load_tool
from tests.tiny_coco import write_tiny


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
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
    """Stands for a detector: two masked objects in every image, one of them of the last class."""

    names = ("dark", "light")

    def predict(self, images, *, score_thr):
        mask = np.zeros(images[0].shape[:2], bool)
        mask[2:6, 3:9] = True
        found = [Detection((3.0, 2.0, 9.0, 6.0), 1, 0.9, mask), Detection((0, 0, 5, 5), 0, 0.4)]
        return [[one for one in found if one.score >= score_thr] for _ in images]


def test_same_detections_as_mmdet_on_files_of_unequal_size(detector):
    config_path, checkpoint = detector
    files = find_images([config_path.parent / "data" / "images"])
    config = load_config(config_path)
    ours = Predictor(config, str(checkpoint), "cpu")
    batch = ours.predict([read_image(file) for file in files], score_thr=0.0)
    one_by_one = [ours.predict([read_image(file)], score_thr=0.0)[0] for file in files]
    model = init_detector(str(config_path), str(checkpoint), device="cpu", palette="random")
    for file, alone, together in zip(files, one_by_one, batch):
        theirs = inference_detector(model, str(file)).pred_instances
        assert [found.label for found in alone] == theirs.labels.tolist()
        for key, tensor in (("box", theirs.bboxes), ("score", theirs.scores)):
            values = torch.tensor([getattr(found, key) for found in alone])
            torch.testing.assert_close(values, tensor.cpu())
            values = torch.tensor([getattr(found, key) for found in together])
            torch.testing.assert_close(values, tensor.cpu(), rtol=1e-4, atol=1e-3)
        threshold = alone[4].score
        above = ours.predict([read_image(file)], score_thr=threshold)[0]
        assert above == [found for found in alone if found.score >= threshold]


def test_predictor_refuses_images_without_pixels(detector):
    predictor = Predictor(load_config(detector[0]), str(detector[1]), "cpu")
    with pytest.raises(ValueError, match=r"\(0, 5, 3\)"):
        predictor.predict([np.zeros((0, 5, 3), np.uint8)], score_thr=0.5)
    assert predictor.predict([np.zeros((1, 1, 3), np.uint8)], score_thr=1.1) == [[]]


@pytest.mark.parametrize("name", ["meta", "mps", "xla", "xpu"])
def test_devices_that_pytorch_knows_but_cannot_use_here(name):
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        pytest.skip("it is here")
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here: .") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test_cfg", "lowest"),
    [
        (None, 0.0),
        ({"max_per_img": 100}, 0.0),
        ({"score_thr": 0.05}, 0.05),
        ({"rpn": {"nms_pre": 1000}, "rcnn": {"score_thr": 0.1}}, 0.1),
    ],
)
def test_the_lowest_score_that_a_model_gives(test_cfg, lowest):
    assert lowest_score(Config({"model": {"type": "X", "test_cfg": test_cfg}})) == lowest


def test_class_names_fall_back_to_the_config(detector, tmp_path):
    config, checkpoint = detector
    weights = torch.load(checkpoint)["state_dict"]
    torch.save(weights, tmp_path / "bare.pth")
    assert Predictor(load_config(config), str(tmp_path / "bare.pth")).names == ("dark", "light")


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.png", (10, 20, 30)),
        ("RGBA", "a.png", (10, 20, 30)),
        ("L", "a.jpg", (22, 22, 22)),
        ("P", "a.png", None),
        ("1", "a.png", (255, 255, 255)),
        ("CMYK", "a.tif", None),
        ("I;16", "a.png", (100, 100, 100)),
        ("F", "a.tif", (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, name, expected):
    path = tmp_path / name
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 100 * 257, np.uint16)).save(path)
    elif mode == "F":
        Image.fromarray(np.full((4, 6), 77.2, np.float32)).save(path)
    else:
        color = {"L": 22, "1": 1, "P": 3, "RGBA": (10, 20, 30, 5), "CMYK": (1, 2, 3, 4)}
        Image.new(mode, (6, 4), color.get(mode, (10, 20, 30))).save(path)
    image = read_image(path)
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    if expected:
        assert tuple(image[2, 3]) == expected


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (6, 4, 3)


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    a, b = tmp_path / "a.jpg", tmp_path / "b.PNG"
    assert find_images([tmp_path, a]) == [a, b]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").touch()
    with pytest.raises(ValueError, match="overlays of one name"):
        find_images([tmp_path, tmp_path / "other"])


def test_patterns_are_expanded_where_the_shell_did_not(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", "deep/down/c.png", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path / "?.*"])] == ["a.jpg", "b.png"]
    names = [path.name for path in find_images([tmp_path / "**" / "*.png"])]
    assert sorted(names) == ["[1].png", "b.png", "c.png"]
    assert find_images([tmp_path / "[1].png"]) == [tmp_path / "[1].png"]  # it is there
    with pytest.raises(ValueError, match=r"pattern .*\*\.txt fits no images"):
        find_images([tmp_path / "*.txt"])
    with pytest.raises(ValueError, match=r"gone\.png does not exist"):
        find_images([tmp_path / "gone.png"])


def write_video(path, frames=7, fps=12.5, size=(66, 48)):
    """Frames of one color each, brighter from one to the next."""
    writer = VideoWriter(path, fps)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 + 30 * number, np.uint8))
    writer.close()
    return path


class Brightness(TwoSquares):
    """Stands for a detector: one object in every image, its score says how bright that is."""

    def predict(self, images, *, score_thr):
        return [[Detection((1, 1, 9, 6), 0, float(one.mean()) / 1000)] for one in images]


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_videos_give_a_video_and_the_frames_in_the_json(tmp_path, every, expected):
    path = write_video(tmp_path / "clip.avi")
    Image.new("RGB", (20, 10), (250, 250, 250)).save(tmp_path / "still.png")
    out, totals = tmp_path / "out", []

    def progress(items, total):
        totals.append(total)
        return items

    files = find_images([path, tmp_path / "still.png"])
    found = predict_files(Brightness(), files, out, every=every, batch_size=2, progress=progress)
    assert found == len(expected) + 1 == totals[0]
    results = json.loads((out / "predictions.json").read_text())
    assert [image.get("frame") for image in results["images"]] == [*expected, None]
    assert [image["width"] for image in results["images"]] == [66] * len(expected) + [20]
    scores = [one["score"] * 1000 for one in results["annotations"]]
    assert scores == pytest.approx([20 + 30 * n for n in expected] + [250], abs=4)  # compressed
    overlay = Video(out / "overlays" / "clip.mp4")
    frames = [frame for _, frame in overlay.frames()]
    assert overlay.fps == pytest.approx(12.5 / every, rel=1e-3) and len(frames) == len(expected)
    assert frames[-1].shape[1] == 660 and abs(frames[-1][-20, -20].mean() - 200) < 6
    assert (out / "overlays" / "still.png").exists()


def test_videos_keep_colors_and_odd_sides(tmp_path):
    frame = np.full((481, 643, 3), (200, 40, 90), np.uint8)
    writer = VideoWriter(tmp_path / "odd.mp4", 25)
    for _ in range(3):
        writer.write(frame)
    writer.close()
    found = list(Video(tmp_path / "odd.mp4").frames())
    assert (
        len(found) == 3 and abs(found[2][1][100:300, 100:300].astype(int) - frame[0, 0]).max() < 6
    )
    assert abs(np.subtract(found[0][1].shape, frame.shape)).max() <= 1


def test_bad_videos_are_named(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match=r"clip\.mp4 is a video, and images are needed"):
        find_images([path], videos=False)
    with pytest.raises(ValueError, match="holds no images"):
        find_images([tmp_path], videos=False)
    assert is_video(path) and [number for number, _ in Video(path).frames(4)] == [0, 4]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be read"):
        predict_files(Brightness(), [path], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_classes_and_the_best_of_a_image(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for settings, expected in (
        (dict(top_k=1), [2]),
        (dict(classes=["dark"]), [1]),
        (dict(classes=["dark"], top_k=5), [1]),
        (dict(classes=["light", "dark"]), [2, 1]),
    ):
        predict_files(TwoSquares(), [tmp_path / "a.png"], tmp_path / "out", **settings)
        results = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [one["category_id"] for one in results["annotations"]] == expected
    with pytest.raises(ValueError, match="no class 'red'; its classes: 'dark', 'light'"):
        predict_files(TwoSquares(), [tmp_path / "a.png"], tmp_path / "new", classes=["red"])
    assert not (tmp_path / "new").exists()


def test_ground_truth_stands_beside_the_prediction(tmp_path):
    write_tiny(tmp_path, categories=("light", "extra"), classes=("light", "extra"))
    data = tmp_path / "data"
    Image.new("RGB", (64, 48)).save(data / "images" / "other.png")
    truth = GroundTruth(data / "annotations.json", ("dark", "light"))
    assert truth.names == ("dark", "light", "extra")
    files = find_images([data / "images"])
    assert truth.count_known(files) == 4
    (one,) = truth.of(files[0], (56, 64))  # "light" is the file's first category
    assert (one.box, one.label, one.score) == ((20, 10, 44, 30), 2, None)
    assert one.mask.sum() == 480 and one.mask[10:30, 20:44].all()
    predict_files(TwoSquares(), files, tmp_path / "out", truth=truth)
    sizes = {file.name: read_image(file).shape for file in (tmp_path / "out/overlays").iterdir()}
    assert sizes["other.png"] == (480, 640, 3)
    assert sizes["1.png"][1] > 2 * 640 and sizes["1.png"][0] > 560

    Image.new("RGB", (63, 56)).save(files[0])
    with pytest.raises(ValueError, match=r"64 x 56 pixels, the image has 63 x 56"):
        predict_files(TwoSquares(), files, tmp_path / "out", truth=truth)
    with pytest.raises(ValueError, match=r"has none of the images: .* '1\.png'"):
        truth.count_known([data / "images" / "other.png"])


def test_images_of_one_name_are_told_apart_by_their_directories(tmp_path):
    images = [
        dict(id=number, file_name=name, height=4, width=5)
        for number, name in enumerate(("1.png", "b/1.png"), start=1)
    ]
    box = dict(id=1, image_id=2, category_id=1, bbox=[0, 0, 2, 2], area=4)
    crowd = dict(box, id=2, iscrowd=1, image_id=1)
    content = dict(images=images, annotations=[box, crowd], categories=[dict(id=1, name="x")])
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = GroundTruth(tmp_path / "a.json")
    assert len(truth.of(tmp_path / "b" / "1.png", (4, 5))) == 1
    assert truth.of(tmp_path / "c" / "1.png", (4, 5)) == []  # a crowd alone
    assert truth.of(tmp_path / "2.png", (4, 5)) is None
    for text, said in (("{", "not JSON"), ("{}", "no 'images'")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            GroundTruth(tmp_path / "a.json")


def test_ground_truth_by_other_names_of_a_file_and_without_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "blob").write_bytes(b"")
    (tmp_path / "linked.png").symlink_to(tmp_path / "cache" / "blob")
    names = [str(tmp_path / "absolute.png"), "../outside.png", "linked.png"]
    image = dict(height=20, width=30)
    content = dict(
        images=[dict(image, id=i, file_name=name) for i, name in enumerate(names)],
        categories=[dict(id=1, name="one")],
        annotations=[dict(image_id=i, category_id=1, bbox=[1, 2, 3, 4 + i]) for i in range(3)],
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = GroundTruth(tmp_path / "a.json")
    paths = [Path("absolute.png"), Path("../outside.png"), Path("linked.png")]
    assert truth.count_known(paths) == 3
    assert [truth.of(path, (20, 30))[0].box[3] for path in paths] == [6, 7, 8]


def test_results_load_in_pycocotools(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "b.jpg")
    out = tmp_path / "out"
    files = find_images([tmp_path])
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "kept.png").touch()
    assert predict_files(TwoSquares(), files, out, score_thr=0.3, batch_size=3) == 4
    assert sorted(path.name for path in (out / "overlays").iterdir()) == [
        "a.png", "b.jpg", "kept.png"
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO(out / "predictions.json")
    assert results.loadCats([2]) == [{"id": 2, "name": "light"}]
    assert results.imgs[2]["file_name"].endswith("b.jpg")
    masked = results.loadAnns(results.getAnnIds(imgIds=[2], catIds=[2]))[0]
    assert masked["bbox"] == [3, 2, 6, 4] and masked["score"] == 0.9 and masked["area"] == 24
    mask = results.annToMask(masked)
    assert mask.shape == (10, 20) and mask[2:6, 3:9].all() and mask.sum() == 24


def test_a_bad_image_leaves_what_was_there(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"b\.png"):
        predict_files(TwoSquares(), find_images([tmp_path]), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    (tmp_path / "b.png").unlink()
    predict_files(TwoSquares(), [tmp_path / "a.png"], out)
    before = json.loads((out / "predictions.json").read_text())
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c\.png"):
        predict_files(TwoSquares(), find_images([tmp_path]), out, score_thr=0.9)
    assert json.loads((out / "predictions.json").read_text()) == before


def test_an_overlay_that_is_too_long_for_a_jpeg_file(tmp_path):
    Image.new("RGB", (40_000, 200)).save(tmp_path / "a.jpg")
    truth = dict(images=[dict(id=1, file_name="a.jpg", height=200, width=40_000)], annotations=[])
    (tmp_path / "a.json").write_text(json.dumps(truth | dict(categories=[dict(id=1, name="x")])))
    truth = GroundTruth(tmp_path / "a.json", TwoSquares.names)
    with pytest.raises(
        ValueError, match=r"a\.jpg: its overlay has 80\d+ x \d+ pixels, a JPEG file"
    ):
        predict_files(TwoSquares(), [tmp_path / "a.jpg"], tmp_path / "out", truth=truth)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_directories_place_is_found_at_the_start(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    tool = load_tool("predict")
    for place in (file, file / "below"):
        said = fails(capsys, tool.main, "gone.py", "gone.pth", "gone.png", "--out-dir", place)
        assert f"cannot write into {place}: {file} is a file" in said
        with pytest.raises(ValueError, match="is a file"), output_directory(place):
            pytest.fail("went on")
    assert list(tmp_path.iterdir()) == [file]
