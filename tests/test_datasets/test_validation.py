"""Datasets with one thing wrong: found before a run, then handled rightly or named with cause."""

import json
import re
import warnings
from copy import deepcopy
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as rle
from torch.utils.data import DataLoader

from ropevit_mmdet._images import read_image
from ropevit_mmdet.apis.ground_truth import GroundTruth
from ropevit_mmdet.apis.predict import Predictor, predict_files
from ropevit_mmdet.datasets.checked_coco import CocoFiles
from ropevit_mmdet.datasets.validation import segmentations
from ropevit_mmdet.datasets.validation.annotations import check_annotations
from ropevit_mmdet.datasets.validation.findings import ERROR
from ropevit_mmdet.datasets.validation.report import KINDS, Report, report_dataset
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import user_message
from tests.malformed_coco import (
    ANNOTATION_CASES,
    CLASSES,
    HEIGHT,
    NAN,
    WIDTH,
    document,
    scene,
    write,
)
from tests.malformed_images import IMAGE_CASES, with_image

CONFIGS = Path(__file__).parents[2] / "configs"
TRAINS = {name: case for name, case in ANNOTATION_CASES.items() if case.stops is None}
STOPS = {name: case for name, case in ANNOTATION_CASES.items() if case.stops}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIGS / "shapes_maskrcnn.py")


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return build_detector(config)


@pytest.fixture(scope="module")
def predictor(config, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "shapes.pth"
    meta = {"dataset_meta": {"classes": CLASSES}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return Predictor(config, str(path), "cpu")


def coco_pipeline() -> list[dict]:
    """The training pipeline of the configs for COCO, with small images."""
    pipeline = Config.fromfile(CONFIGS / "_base_/datasets/coco_lsj.py").train_pipeline
    for step in pipeline:
        for key in ("scale", "crop_size"):
            if key in step:
                step[key] = (112, 112)
        if "ratio_range" in step:  # of 896 pixels 0.1 are as many
            step["ratio_range"] = (0.8, 2.0)
    return pipeline


def dataset(directory: Path, *, test_mode: bool = False, empty: bool = True):
    init_default_scope("mmdet")
    settings = dict(type="CheckedCocoDataset", data_root=f"{directory}/", test_mode=test_mode)
    settings |= dict(ann_file="annotations.json", data_prefix=dict(img="images/"))
    settings |= dict(metainfo=dict(classes=CLASSES), pipeline=coco_pipeline())
    settings |= dict(filter_cfg=dict(filter_empty_gt=empty))
    return DATASETS.build(settings)


def train_step(model, items: list[dict]) -> None:
    """Losses and gradients of a batch; all must be finite."""
    model.train().zero_grad()
    data = model.data_preprocessor(pseudo_collate(items), True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert all(torch.as_tensor(value).isfinite() for value in parts.values()), parts
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def report(directory: Path, *, decode: bool = False, evaluated: bool = False) -> Report:
    files = CocoFiles(
        directory / "annotations.json", directory / "images", True, evaluated, CLASSES
    )
    return report_dataset(files, decode=decode)


def spoilt(name: str) -> dict:
    content = document()
    ANNOTATION_CASES[name].spoil(content)
    return content


@pytest.mark.parametrize("name", TRAINS)
def test_annotations_that_are_dealt_with(name, model, tmp_path):
    write(tmp_path, spoilt(name))
    found = report(tmp_path).findings
    kind = TRAINS[name].kind
    assert found.of(ERROR) == []
    assert set(found.places) - {"not annotated"} == ({kind} if kind else set())
    torch.manual_seed(0)
    np.random.seed(0)
    data = dataset(tmp_path)
    assert len(data) == 3
    train_step(model, [data[index] for index in range(3)])


@pytest.mark.parametrize("name", STOPS)
def test_annotations_that_stop_a_training_are_named_before_it_starts(name, tmp_path):
    write(tmp_path, spoilt(name))
    case, found = STOPS[name], report(tmp_path).findings
    assert case.kind in found.of(ERROR)
    with pytest.raises(ValueError, match=case.stops) as caught:
        dataset(tmp_path)
    message = user_message(caught.value)
    assert message and "annotations.json" in message and "\n" not in message


def test_every_kind_of_finding_has_a_case():
    tried = {case.kind for case in ANNOTATION_CASES.values()}
    tried |= {case.refused for case in TRAINS.values() if case.refused}
    tried |= {case.kind for case in IMAGE_CASES.values()}
    tried |= {"names not ASCII", "large masks", "several frames"}  # below
    tried |= {"not annotated", "no objects", "classes", "image directory", "annotation file"}
    assert tried - {""} == set(KINDS)


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_images(name, model, predictor, tmp_path):
    case, content = IMAGE_CASES[name], with_image(name)
    write(tmp_path, content, case.save)
    path = tmp_path / "images" / content["images"][0]["file_name"]

    found = report(tmp_path).findings.places
    if case.decoded:
        assert case.kind not in found
        found = report(tmp_path, decode=True).findings.places
    assert [kind for kind in found if kind != "not annotated"][: bool(case.kind)] == (
        [case.kind] * bool(case.kind)
    )
    data = dataset(tmp_path)
    if case.stops:
        with pytest.raises(ValueError, match=case.stops) as caught:
            data[0]
        message = user_message(caught.value)
        assert path.name in message and "\n" not in message
    else:
        train_step(model, [data[0]])
        trained = mmcv.imread(str(path), channel_order="rgb")
        difference = np.abs(trained.astype(int) - read_image(path))
        assert trained.shape[:2] == case.size and difference.max() <= case.off
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case.refused:
            with pytest.raises(ValueError, match=case.refused) as caught:
                predict_files(predictor, [path], tmp_path / "out")
            assert path.name in user_message(caught.value)
            assert not (tmp_path / "out").exists()
        else:
            (objects,) = predictor.predict([read_image(path)], score_thr=0.0)
            assert all(np.isfinite([*one.box, one.score]).all() for one in objects)


@pytest.mark.parametrize("name", ["cut.jpg", "missing.png"])
def test_images_are_named_out_of_a_worker_too(name, tmp_path):
    write(tmp_path, with_image(name), IMAGE_CASES[name].save)
    error = worker_error(dataset(tmp_path), pseudo_collate)
    message = user_message(error)
    assert "DataLoader worker" in str(error) and re.search(IMAGE_CASES[name].stops, message)
    assert "\n" not in message and "worker" not in message
    assert user_message(worker_error([0], _bug)) is None  # a bug keeps its traceback


def worker_error(data, collate) -> Exception:
    """What the first batch out of a worker process raises; the worker has ended then."""
    batches = iter(DataLoader(data, num_workers=1, collate_fn=collate))
    try:
        next(batches)
    except Exception as error:
        list(batches)
        return error.with_traceback(None)
    raise AssertionError("nothing was raised")


def _bug(items):
    raise ValueError(f"of somebody else's {items}")


def test_boxes_of_a_turned_image_lie_on_the_upright_one(tmp_path):
    """What mmcv loads and what prediction reads are turned alike, from EXIF and never from XMP."""
    image = Image.fromarray(scene())
    orientation = (
        b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>6</tiff:Orientation>'
    )
    image.save(tmp_path / "xmp.jpg", xmp=orientation)
    IMAGE_CASES["turned.jpg"].save(tmp_path / "exif.jpg")
    for name, shape in (("xmp.jpg", (HEIGHT, WIDTH, 3)), ("exif.jpg", (WIDTH, HEIGHT, 3))):
        trained = mmcv.imread(str(tmp_path / name), channel_order="rgb")
        assert trained.shape == shape
        assert np.array_equal(trained, read_image(tmp_path / name))
    assert trained[0, 0, 0] > 200 and trained[-1, 0, 0] > 200  # red grew downwards, now leftwards
    assert trained[0, -1, 0] < 50


def test_names_that_are_not_ascii(model, tmp_path):
    content = document()
    content["images"][0]["file_name"] = "Straße 東京.png"
    write(tmp_path, content, lambda path: Image.fromarray(scene()).save(path))
    assert list(report(tmp_path).findings.places) == ["names not ASCII"]
    train_step(model, [dataset(tmp_path)[0]])
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    content["images"][0]["file_name"] = composed
    write(tmp_path / "2", content, lambda path: _sound(path.with_name(decomposed)))
    (place,) = report(tmp_path / "2").findings.places["missing"]
    assert decomposed in place


def _sound(path: Path) -> None:
    Image.fromarray(scene()).save(path)


@pytest.mark.parametrize(
    "name", [f"{'x' * 300}.png", f"{'x' * 300}/1.png", "a\0b.png", "http://h/1.png"]
)
def test_names_that_no_file_can_have(name, tmp_path):
    content = document()
    content["images"][0]["file_name"] = name
    write(tmp_path, content, lambda path: None)
    found = report(tmp_path).findings
    assert set(found.of(ERROR)) <= {"missing", "unreadable"} and found.of(ERROR)
    with pytest.raises(ValueError, match="image .*(too long|does not exist)") as caught:
        dataset(tmp_path)[0]
    assert user_message(caught.value)


def test_evaluation_needs_iscrowd_and_says_so_before_the_first_iteration(tmp_path):
    content = document()
    del content["annotations"][0]["iscrowd"]
    write(tmp_path, content)
    assert len(dataset(tmp_path)) == 3
    with pytest.raises(ValueError, match="annotation 1 of image 1: no 'iscrowd'"):
        dataset(tmp_path, test_mode=True)
    assert report(tmp_path, evaluated=True).findings.of(ERROR) == ["annotation fields"]
    with pytest.raises(KeyError):  # of pycocotools, after an epoch of training
        evaluate(tmp_path)


@pytest.mark.parametrize("name", TRAINS)
def test_what_a_validation_loads_can_be_evaluated(name, tmp_path, capsys):
    write(tmp_path, spoilt(name))
    refused, found = TRAINS[name].refused, report(tmp_path, evaluated=True).findings.of(ERROR)
    assert found == [refused] * bool(refused)
    if refused:
        with pytest.raises(ValueError, match=KINDS[refused].meaning.split(":")[0]) as caught:
            dataset(tmp_path, test_mode=True)
        assert user_message(caught.value)
    if refused in ("two points first", "text ids", "mixed ids"):
        with pytest.raises((TypeError, ValueError)):  # of pycocotools, after an epoch of training
            evaluate(tmp_path)
    elif not refused:
        assert len(dataset(tmp_path, test_mode=True)) == 3
        assert np.isfinite(list(evaluate(tmp_path).values())).all()


def test_the_object_with_id_zero_counts_as_missed(tmp_path, capsys):
    """Why pycocotools is not given one: it takes the 0 for "no object", without a word."""
    two_of_three = 2 / 3 * 67 / 101  # that precision at 67 of the 101 recalls
    for first, precision in ((1, 1.0), (0, two_of_three)):
        content = document()
        content["annotations"] = content["annotations"][::2]
        for number, one in enumerate(content["annotations"], start=first):
            one.update(id=number, bbox=[10, 12, 40, 48], category_id=2)
        metrics = evaluate(write(tmp_path / str(first), content))
        assert metrics["coco/bbox_mAP_50"] == pytest.approx(precision, abs=0.001)


def evaluate(directory: Path) -> dict[str, float]:
    """COCO's metrics of a box for each image."""
    metric = CocoMetric(ann_file=str(directory / "annotations.json"), metric=["bbox", "segm"])
    metric.dataset_meta = dict(classes=CLASSES)
    found = dict(bboxes=torch.tensor([[10.0, 12, 50, 60]]), scores=torch.tensor([0.9]))
    found |= dict(labels=torch.tensor([1]), masks=torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool))
    for image in json.loads((directory / "annotations.json").read_text())["images"]:
        sample = dict(img_id=image["id"], ori_shape=(HEIGHT, WIDTH), pred_instances=deepcopy(found))
        metric.process({}, [sample])
    return metric.evaluate(3)


def test_left_out_objects_are_counted_in_the_log(tmp_path, monkeypatch):
    content, said = document(), []
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][3]["category_id"] = 9
    write(tmp_path, content)
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", said.append)
    data = dataset(tmp_path)
    assert [len(data.get_data_info(i)["instances"]) for i in range(3)] == [1, 1, 2]
    (line,) = said
    assert "boxes narrower" in line and "(1: 1.png, annotation 1: bbox" in line
    assert "annotations of categories that it lacks: left out (1: 2.png, annotation 4" in line


def test_annotation_files_that_are_no_json(tmp_path):
    whole, deep, deep_end = json.dumps(document()), "[" * 9999, "]" * 9999
    for number, (text, said) in enumerate(
        [("", "not JSON, or truncated"), ('{"images": [', "truncated"), ("[1]", "no 'images'"),
         ('{"categories": [{"id": 1, "name": "ring"}] oops}', "not JSON"),
         (whole.replace('"images": [', f'"images": [{"9" * 5000}, '), "4300 digits"),
         (whole.replace('"images": [', f'"images": [{deep}{deep_end}, '), "recursion"),
         (whole.replace('"categories": [', f'"categories": [{deep}'), "recursion"),
         (json.dumps(dict(document(), images=3)), "no 'images'"),
         *((json.dumps(dict(document(), annotations=some)), "no 'annotations', a list")
           for some in (None, 5, False, "x", {"a": 1}))]
    ):  # fmt: skip
        directory = write(tmp_path / str(number), text)
        assert "annotation file" in report(directory).findings.places
        with pytest.raises(ValueError, match=said) as caught:
            dataset(directory)
        assert user_message(caught.value)


def test_run_lengths_are_decoded_as_pycocotools_does():
    random = np.random.default_rng(0)
    for size in [(1, 1), (84, 112), (7, 3001), (700, 900)]:
        for density in (0.0, 0.001, 0.5, 1.0):
            mask = np.asfortranarray(random.random(size) < density).astype(np.uint8, order="F")
            code = rle.encode(mask)
            counts = segmentations._decoded_counts(code["counts"].decode())
            assert sum(counts) == mask.size and sum(counts[1::2]) == mask.sum()
            flat = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size, order="F")
            assert np.array_equal(flat, mask)


def test_large_masks_are_foreseen():
    content = document(1)
    content["images"][0].update(height=12000, width=14000)
    assert "large masks" not in check_annotations(content, masks=True).places
    content["annotations"] = [dict(content["annotations"][0], id=i) for i in range(1, 16)]
    (place,) = check_annotations(content, masks=True).places["large masks"]
    assert place == "1.png: 15 masks of 14000 x 12000, 3 GB"
    assert check_annotations(content, masks=False).places == {}


def test_ground_truth_that_cannot_be_drawn(tmp_path):
    content = document()
    content["annotations"][0]["segmentation"][0][1] = NAN
    content["annotations"][2]["category_id"] = 99
    write(tmp_path, content)
    truth = GroundTruth(tmp_path / "annotations.json")
    with pytest.raises(ValueError, match=r"annotation 1 of 1\.png cannot be drawn"):
        truth.of(tmp_path / "1.png", (HEIGHT, WIDTH))
    assert len(truth.of(tmp_path / "2.png", (HEIGHT, WIDTH))) == 1
    content["annotations"][0]["bbox"] = None
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 1 of image 1: bbox None"):
        GroundTruth(tmp_path / "annotations.json")


def test_files_of_several_images(tmp_path):
    frames = [Image.fromarray(scene()[:, :, [i, i, i]]) for i in range(3)]
    for suffix, name in (("gif", "GIF"), ("tif", "TIFF"), ("png", "PNG"), ("jpg", "MPO")):
        content = document()
        content["images"][0]["file_name"] = f"1.{suffix}"
        directory = write(tmp_path / suffix, content)
        path = directory / "images" / f"1.{suffix}"
        frames[0].save(path, name, save_all=True, append_images=frames[1:])
        assert "several frames" in report(directory).findings.places
        assert np.array_equal(mmcv.imread(str(path))[:, :, ::-1], read_image(path))
