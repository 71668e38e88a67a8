"""A checkpoint as a detector: the detections of mmdet, all forms of images and of checkpoints."""

import io
from types import GeneratorType

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from PIL import Image

from ropevit_cli.main import build_parser
from ropevit_cli.test import prepare
from ropevit_mmdet._images import find_images, read_image
from ropevit_mmdet.apis import Detector, choose_device
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.commands import fails, ropevit
from tests.tiny_coco import write_python_style


@pytest.fixture(scope="module")
def detector(saved):
    return Detector(saved[1], device="cpu")


@pytest.fixture
def files(saved):
    return find_images([saved[0].parent / "data" / "images"])


def same(one, other, **tolerance):
    for key in ("labels", "bboxes", "scores"):
        expected, actual = (sample.pred_instances[key] for sample in (one, other))
        torch.testing.assert_close(actual, expected, **tolerance)


def truncated():
    """A PIL image whose file ends too early."""
    file = io.BytesIO()
    Image.effect_noise((64, 48), 50).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:1000]))


def rewritten(checkpoint, target, **meta):
    """A copy with other metadata."""
    content = torch.load(checkpoint)
    content["meta"] = {key: value for key, value in (content["meta"] | meta).items() if value}
    torch.save(content, target)
    return target


def test_detections_equal_those_of_mmdet_on_images_of_unequal_size(saved, detector, files):
    batch = detector(files, batch_size=3)
    model = init_detector(*map(str, saved), device="cpu", palette="random")
    for file, batched in zip(files, batch, strict=True):
        theirs, ours = inference_detector(model, str(file)), detector(file)
        assert isinstance(ours, DetDataSample) and ours.img_path == str(file)
        assert ours.ori_shape == theirs.ori_shape
        same(theirs, ours)
        same(theirs, batched, rtol=1e-4, atol=1e-3)
        scores = ours.pred_instances.scores
        above = detector(file, score_thr=float(scores[4])).pred_instances.scores
        assert above.tolist() == [one for one in scores.tolist() if one >= scores[4]]


def test_images_are_paths_arrays_and_pil_images_alone_and_in_iterables(detector, files):
    """Arrays are BGR, as mmdet and OpenCV have them."""
    file = files[0]
    array = read_image(file)[:, :, ::-1]
    expected = detector(file)
    assert len(expected.pred_instances) == 10
    samples = detector((str(file), array, Image.open(file), Image.open(file).convert("RGBA")))
    assert isinstance(samples, list) and len(samples) == 4 and detector([]) == []
    for sample in (*samples, detector(array), detector(Image.open(file))):
        same(expected, sample)
    read = []
    samples = detector((read.append(one) or one for one in [file] * 5), batch_size=2)
    assert isinstance(samples, GeneratorType) and not read
    same(expected, next(samples), rtol=1e-4, atol=1e-3)
    assert len(read) == 2 and len(list(samples)) == 4
    swapped = detector(np.ascontiguousarray(array[:, :, ::-1]))
    assert swapped.pred_instances.scores.tolist() != expected.pred_instances.scores.tolist()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"image 1 is ndarray \[8, 8\] uint8: expected a path, a PIL"),
        (np.zeros((8, 8, 4), np.uint8), r"ndarray \[8, 8, 4\] uint8"),
        (np.zeros((0, 8, 3), np.float32), r"ndarray \[0, 8, 3\] float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"Tensor \[3, 8, 8\] torch.uint8"),
        ("gone.png", "image gone.png cannot be read"),
        (truncated(), "image 1 cannot be read: image file is truncated"),
        (np.zeros((1, 300, 3), np.uint8), "image 1 is more than 100 times as long as wide"),
        (np.zeros((1, 99, 3), np.uint8), "image 1: the test pipeline fails: error: OpenCV"),
    ],
)
def test_other_images_are_errors_of_one_line(detector, files, image, message, monkeypatch):
    monkeypatch.setattr(detector._pipeline.transforms[1], "scale", (32, 32))
    with pytest.raises(UserError, match=message) as caught:
        detector([files[0], image])
    assert "\n" not in str(caught.value)


def test_a_config_may_replace_that_of_the_checkpoint(saved, detector, files, tmp_path):
    path, checkpoint = saved
    for config in (path, str(path), load_config(path)):
        same(detector(files[0]), Detector(checkpoint, config=config, device="cpu")(files[0]))
    bare = rewritten(checkpoint, tmp_path / "bare.pth", cfg=None, dataset_meta=None)
    with pytest.raises(UserError, match=r"bare\.pth contains no config: pass one"):
        Detector(bare)
    assert Detector(bare, config=path).classes == detector.classes == ("dark", "light")
    config = load_config(path)
    config.test_dataloader = None
    with pytest.raises(UserError, match="the config has no test_dataloader"):
        Detector(checkpoint, config=config)


@pytest.mark.parametrize("call", ["os.mkdir", "mmengine.utils.path.mkdir_or_exist"])
def test_a_config_in_a_checkpoint_runs_nothing(saved, tmp_path, call):
    """mmengine calls whatever function a dotted type names."""
    text, made = torch.load(saved[1])["meta"]["cfg"], tmp_path / "made"
    attack = f"type={call!r}, {'path' if call == 'os.mkdir' else 'dir_name'}={str(made)!r}"
    file = rewritten(saved[1], tmp_path / "a.pth", cfg=f"{text}\nmodel = dict({attack})\n")
    with pytest.raises(Exception, match="mkdir"):
        Detector(file)
    assert not made.exists()


def test_python_style_configs_are_those_of_strings(saved, detector, files, tmp_path):
    path = write_python_style(saved[0], tmp_path / "python_style.py")
    config = load_config(path)
    same(detector(files[0]), Detector(saved[1], config=config, device="cpu")(files[0]))
    file = rewritten(saved[1], tmp_path / "c.pth", cfg=config.pretty_text)  # dotted names
    assert "mmdet.models" in config.pretty_text
    same(detector(files[0]), Detector(file, device="cpu")(files[0]))


def test_classes_are_compared_label_by_label(saved, tmp_path, monkeypatch):
    path, checkpoint = saved
    config = load_config(path)
    config.test_dataloader.dataset.metainfo.classes = ("light", "dark")
    with pytest.raises(UserError, match="classes in another order"):
        Detector(checkpoint, config=config)
    logged = []
    monkeypatch.setattr("ropevit_mmdet.apis.detector.print_log", lambda *a: logged.append(a[0]))
    config.test_dataloader.dataset.metainfo.classes = ("dark", "lamp")
    assert Detector(checkpoint, config=config).classes == ("dark", "light")
    assert "other classes than the dataset's" in logged[0]


@pytest.mark.parametrize("name", ["meta", "tpu9", "cuda:99"])
def test_unusable_devices_are_an_error_of_one_line(name):
    with pytest.raises(UserError, match=f"device '{name}' cannot be used here: .") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_commands_take_a_config_or_that_of_the_checkpoint(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, checkpoint = saved
    image = path.parent / "data" / "images" / "1.png"
    for argv in ([checkpoint, image], [path, checkpoint, "--device", "cpu", image]):
        ropevit("predict", *argv, "--score-thr", "0")
        assert "10 objects in 1 file," in capsys.readouterr().out
    for argv in (["predict", path, checkpoint], ["test", checkpoint, path], ["export", checkpoint]):
        assert "wrong number of arguments" in fails(capsys, *argv)
    parser = build_parser(["test"])
    for argv in ([], [str(path), "--work-dir", "other"]):
        args, more = parser.parse_known_args(["test", *argv, str(checkpoint)])
        args.rest += more
        config, _ = prepare(args)
        assert config.load_from == str(checkpoint) and type_name(config.model) == "RetinaNet"
        assert config.work_dir == ("other" if argv else "work_dirs/tiny")
    assert config.test_dataloader == load_config(path).test_dataloader
