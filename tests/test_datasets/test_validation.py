"""Datasets with one defect each: reported by its check, then handled in training or refused."""

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
from pycocotools import mask as rle

from ropevit_mmdet import FastCocoMetric
from ropevit_mmdet._images import read_image
from ropevit_mmdet.datasets.validation.checks import CHECKS, ERROR, CocoFiles
from ropevit_mmdet.datasets.validation.report import Report, report_dataset
from ropevit_mmdet.datasets.validation.segmentations import _decoded
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from tests.malformed_coco import (
    ANNOTATION_CASES,
    CLASSES,
    HEIGHT,
    UNUSABLE,
    WIDTH,
    document,
    settings,
    write,
)
from tests.malformed_images import IMAGE_CASES, with_image

CONFIGS = Path(__file__).parents[2] / "configs"
TRAINS = {name: case for name, case in ANNOTATION_CASES.items() if case.stops is None}
STOPS = {name: case for name, case in ANNOTATION_CASES.items() if case.stops}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_detector(load_config(CONFIGS / "shapes_maskrcnn.py"))


def coco_pipeline() -> list[dict]:
    """The training pipeline of the COCO configs, with small images."""
    pipeline = Config.fromfile(CONFIGS / "_base_/datasets/coco_lsj.py").train_pipeline
    for step in pipeline:
        for key in ("scale", "crop_size"):
            if key in step:
                step[key] = (112, 112)
        if "ratio_range" in step:
            step["ratio_range"] = (0.8, 2.0)
    return pipeline


def dataset(directory: Path, **options):
    init_default_scope("mmdet")
    ours = dict(pipeline=coco_pipeline(), filter_cfg=dict(filter_empty_gt=True))
    return DATASETS.build(settings(directory, **(ours | options)))


def train_step(model, items: list[dict]) -> None:
    """Losses and gradients of a batch; all must be finite."""
    model.train().zero_grad()
    data = model.data_preprocessor(pseudo_collate(items), True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert all(torch.as_tensor(value).isfinite() for value in parts.values()), parts
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def report(directory: Path, *, decode: bool = False, evaluated: bool = False) -> Report:
    files = CocoFiles(directory / "annotations.json", directory / "images", True, CLASSES)
    return report_dataset(files._replace(trained=not evaluated), decode=decode)


def malformed(name: str) -> dict:
    content = document()
    ANNOTATION_CASES[name].spoil(content)
    return content


def evaluate(directory: Path, metric_class=FastCocoMetric) -> dict[str, float]:
    """COCO's metrics of one detection in each image."""
    metric = metric_class(ann_file=str(directory / "annotations.json"), metric=["bbox", "segm"])
    metric.dataset_meta = dict(classes=CLASSES)
    detections = dict(bboxes=torch.tensor([[10.0, 12, 50, 60]]), scores=torch.tensor([0.9]))
    detections |= dict(labels=torch.tensor([1]), masks=torch.ones(1, HEIGHT, WIDTH).bool())
    for image in json.loads((directory / "annotations.json").read_text())["images"]:
        sample = dict(img_id=image["id"], ori_shape=(HEIGHT, WIDTH))
        metric.process({}, [sample | dict(pred_instances=deepcopy(detections))])
    return metric.evaluate(3)


@pytest.mark.parametrize("name", TRAINS)
def test_annotations_that_training_handles(name, model, tmp_path):
    write(tmp_path, malformed(name))
    findings = report(tmp_path).findings
    assert findings.of(ERROR) == []
    check = TRAINS[name].check
    assert set(findings.places) - {"no objects"} == ({check} if check else set())
    torch.manual_seed(0)
    np.random.seed(0)
    data = dataset(tmp_path)
    assert len(data) == 3
    train_step(model, [data[index] for index in range(3)])


@pytest.mark.parametrize("name", STOPS)
def test_annotations_that_stop_training_on_loading(name, tmp_path):
    write(tmp_path, malformed(name))
    assert STOPS[name].check in report(tmp_path).findings.of(ERROR)
    with pytest.raises(UserError, match=STOPS[name].stops) as caught:
        dataset(tmp_path)
    assert "annotations.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRAINS)
def test_annotations_that_are_evaluated_or_refused(name, tmp_path):
    write(tmp_path, malformed(name))
    refused = TRAINS[name].refused
    assert report(tmp_path, evaluated=True).findings.of(ERROR) == [refused] * bool(refused)
    if refused:
        with pytest.raises(UserError, match=CHECKS[refused].message[:20]):
            dataset(tmp_path, test_mode=True)
    else:
        assert len(dataset(tmp_path, test_mode=True)) == 3
        metrics = evaluate(tmp_path)
        assert metrics == evaluate(tmp_path, CocoMetric) and np.isfinite([*metrics.values()]).all()


@pytest.mark.parametrize("name", UNUSABLE)
def test_annotations_of_which_none_is_trained(name, tmp_path):
    """Without the check a training learns nothing and ends with exit status 0."""
    spoil, reason = UNUSABLE[name]
    content = document()
    spoil(content)
    write(tmp_path, content)
    message = f"nothing to learn: 3 images, 0 usable objects: all {reason}"
    files = CocoFiles(tmp_path / "annotations.json", tmp_path / "images")
    (place,) = report_dataset(files).findings.places["nothing usable"]
    assert re.match(message, place)
    options = dict(filter_cfg=dict(filter_empty_gt=False))
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, **options)
    plain = dataset(tmp_path, type="CocoDataset", serialize_data=False, **options)
    instances = [one for image in plain.data_list for one in image["instances"]]
    usable = [one for one in instances if any(len(part) >= 6 for part in one["mask"])]
    trained = [one for one in usable if not one["ignore_flag"]]
    assert not [one for one in trained if "corners" not in name]


def test_ignored_objects_are_evaluated(tmp_path):
    """By pycocotools, which sets `ignore` itself."""
    content = document()
    UNUSABLE["ignored"][0](content)
    assert len(dataset(write(tmp_path, content), test_mode=True)) == 3


def test_every_check_has_a_case():
    checked = {case.check for case in ANNOTATION_CASES.values()}
    checked |= {case.refused for case in TRAINS.values() if case.refused}
    checked |= {case.check for case in IMAGE_CASES.values()}
    checked |= {"no objects", "image directory", "annotation file"}  # in other tests
    checked |= {"classes", "class order", "no annotations"}
    assert checked - {""} == set(CHECKS)
    assert all(check.message and check.fix for check in CHECKS.values())


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_images(name, model, tmp_path):
    case, content = IMAGE_CASES[name], with_image(name)
    write(tmp_path, content, case.save)
    path = tmp_path / "images" / content["images"][0]["file_name"]
    places = report(tmp_path).findings.places
    if case.decoded:
        assert case.check not in places
        places = report(tmp_path, decode=True).findings.places
    assert list(places) == ([case.check] if case.check else [])
    data = dataset(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if case.stops:
            with pytest.raises(UserError, match=case.stops) as caught:
                data[0]
            assert path.name in str(caught.value) and "\n" not in str(caught.value)
            if case.check == "unreadable":
                with pytest.raises(UserError, match=r"1\.\w+ cannot be read"):
                    read_image(path)
            return
        sample = data[0]
    train_step(model, [sample])
    trained = mmcv.imread(str(path), channel_order="rgb")  # as LoadImageFromFile
    assert trained.shape[:2] == case.size
    np.testing.assert_array_equal(trained, read_image(path))


def test_images_without_objects_and_a_missing_directory(tmp_path):
    content = document()
    content["annotations"] = content["annotations"][2:]
    write(tmp_path, content)
    (tmp_path / "images").rename(tmp_path / "others")
    places = report(tmp_path).findings.places
    assert places["no objects"] == ["1.png"] and "images" in places["image directory"][0]


def test_an_object_with_id_0_counts_as_missed(tmp_path):
    """The reason for the check: COCO's evaluation takes 0 for "no object"."""
    two_of_three = 2 / 3 * 67 / 101  # that precision at 67 of the 101 recalls
    for first, precision in ((1, 1.0), (0, two_of_three)):
        content = document()
        content["annotations"] = content["annotations"][::2]
        for number, one in enumerate(content["annotations"], start=first):
            one.update(id=number, bbox=[10, 12, 40, 48], category_id=2)
        directory = write(tmp_path / str(first), content)
        metrics = evaluate(directory, CocoMetric)
        assert metrics["coco/bbox_mAP_50"] == pytest.approx(precision, abs=0.001)


def test_warnings_are_logged_in_one_line(tmp_path, monkeypatch):
    content, lines = document(), []
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][3]["category_id"] = 9
    write(tmp_path, content)
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", lines.append)
    data = dataset(tmp_path)
    assert [len(data.get_data_info(i)["instances"]) for i in range(3)] == [1, 1, 2]
    (line,) = lines
    assert "boxes narrower" in line and "(1: 1.png, annotation 1: bbox" in line
    assert "categories that the file lacks: ignored (1: annotation 4: image 2, category 9" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "truncated"),
        ("[1]", "no 'images'"),
        (json.dumps(dict(document(), annotations=None)), "no 'annotations', a list"),
    ],
)
def test_annotation_files_of_another_format(text, message, tmp_path):
    directory = write(tmp_path, text)
    assert "annotation file" in report(directory).findings.places
    with pytest.raises(UserError, match=message):
        dataset(directory)


def test_run_lengths_are_decoded_as_by_pycocotools():
    random = np.random.default_rng(0)
    for size in [(1, 1), (84, 112), (7, 3001), (700, 900)]:
        for density in (0.0, 0.001, 0.5, 1.0):
            mask = np.asfortranarray(random.random(size) < density).astype(np.uint8, order="F")
            counts = _decoded(rle.encode(mask)["counts"].decode())
            flat = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size, order="F")
            assert np.array_equal(flat, mask)
