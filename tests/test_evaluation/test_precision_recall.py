"""Confusion matrix and precision over recall, compared with values computed by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.confusion_matrix import confusion_matrix, pair_objects
from ropevit_mmdet.evaluation.precision_recall import as_json, precision_recall
from ropevit_mmdet.evaluation.result_file import Detections, read_results
from tests.test_evaluation.test_fast_coco_metric import synthetic

NAMES = ("cat", "dog", "cow")
BOX = [0, 0, 20, 20]


def annotations(objects, names=NAMES):
    """Of two images, 1 and 2; objects are (image, class, box x y w h, crowd)."""
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i, file_name=f"{i}.png", width=100, height=100) for i in (1, 2)],
        categories=[dict(id=10 * i + 5, name=name) for i, name in enumerate(names)],
        annotations=[
            dict(id=number, image_id=image, category_id=10 * names.index(name) + 5, bbox=box,
                 area=box[2] * box[3], iscrowd=int(crowd))
            for number, (image, name, box, crowd) in enumerate(objects, start=1)
        ],
    )  # fmt: skip
    coco.createIndex()
    return Annotations(coco, names)


def result(*detections):
    """Of (class, box x y w h, score)."""
    boxes = np.array([box for _, box, _ in detections], float).reshape(-1, 4)
    labels = np.array([NAMES.index(name) for name, _, _ in detections])
    return Detections(boxes, labels, np.array([score for *_, score in detections], float))


def matrix_of(results, truth, **thresholds):
    return confusion_matrix(pair_objects(results, truth, **thresholds), 3)


def test_a_confusion_matrix():
    truth = annotations(
        [
            (1, "cat", BOX, False),
            (1, "dog", [40, 0, 20, 20], False),
            (1, "cow", [0, 40, 20, 20], False),  # missed
            (1, "cow", [60, 60, 40, 40], True),  # a crowd
            (2, "cat", BOX, False),
            (2, "dog", [50, 50, 20, 20], False),
        ]
    )
    results = {
        1: result(
            ("cat", [0, 0, 20, 18], 0.9),  # correct
            ("cat", [0, 2, 20, 18], 0.8),  # the same object again: background
            ("cow", [40, 0, 20, 20], 0.95),  # a dog as a cow
            ("dog", [44, 0, 20, 20], 0.4),  # correct, with less overlap and score
            ("cow", [70, 70, 10, 10], 0.7),  # in the crowd: does not count
            ("dog", [0, 80, 10, 10], 0.7),  # background
            ("cow", [0, 40, 20, 20], 0.1),  # correct, but with a low score
        ),
        2: result(("dog", BOX, 0.6)),  # a cat as a dog
    }
    expected = [  # cat, dog, cow, missed
        [1, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 1],
        [1, 1, 1, 0],
    ]
    assert matrix_of(results, truth).tolist() == expected
    assert matrix_of(results, truth, score_thr=0.0)[2].tolist() == [0, 0, 1, 0]
    strict = matrix_of(results, truth, tp_iou_thr=0.95)
    assert strict.tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 0, 0]]
    nothing = matrix_of({}, truth)
    assert nothing[:, -1].tolist() == [2, 2, 1, 0] and nothing.sum() == 5


def test_curves():
    """Two of four cats, a false one, the third cat; a dog at an IoU of .6."""
    cats = [(1, "cat", [25 * i, 0, 20, 20], False) for i in range(4)]
    truth = annotations([*cats, (2, "dog", BOX, False)])
    detections = [("cat", [25 * i, 0, 20, 20], 0.9 - 0.1 * i) for i in range(2)]
    detections += [("cat", [0, 60, 20, 20], 0.5), ("cat", [50, 0, 20, 20], 0.4)]
    results = {1: result(*detections), 2: result(("dog", [0, 0, 12, 20], 0.3))}
    curves = precision_recall(results, truth)
    cat = np.where(curves.recall <= 0.5, 1.0, np.where(curves.recall <= 0.75, 0.75, 0.0))
    np.testing.assert_allclose(curves.precision[:, :, 0], [cat, cat])
    np.testing.assert_allclose(curves.precision[:, :, 1], [[1] * 101, [0] * 101])
    assert np.isnan(curves.precision[:, :, 2]).all()  # no cows at all
    assert curves.means()[1] == pytest.approx((cat.mean() + 1) / 2)
    numbers = as_json(np.zeros((4, 4), int), curves, score_thr=0.3, tp_iou_thr=0.5)
    classes = numbers["precision_recall"]["0.75"]["classes"]
    assert classes["cow"] == {"ap": None, "precision": None}
    assert classes["cat"]["ap"] == pytest.approx(cat.mean(), abs=1e-6)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers

    other = Annotations(truth.coco, ("dog", "cat"))  # classes in another order than the file's
    swapped = {key: one._replace(labels=1 - one.labels) for key, one in results.items()}
    precision = precision_recall(swapped, other).precision
    np.testing.assert_array_equal(precision, curves.precision[:, :, [1, 0]])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_without_detections_or_objects():
    truth = annotations([(1, "cat", BOX, False), (2, "cow", [0, 0, 9, 9], True)])
    matrix, curves = matrix_of({}, truth), precision_recall({}, truth)
    assert matrix[0, 3] == matrix.sum() == 1
    assert (curves.precision[:, :, 0] == 0).all() and np.isnan(curves.precision[:, :, 1:]).all()
    truth = annotations([(2, "cow", [0, 0, 9, 9], True)])
    for results in ({}, {1: result(("cat", BOX, 0.9))}):
        assert np.isnan(precision_recall(results, truth).means()).all()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_figures_are_those_of_the_test(tmp_path, iou_type):
    metric, samples, names = synthetic(tmp_path, iou_type, classwise=True)
    metric.process({}, samples)
    reported = metric.compute_metrics(metric.results)
    truth, results = Annotations(metric._coco_api, names), {}
    for one in samples:
        found = {k: v if k == "masks" else v.numpy() for k, v in one["pred_instances"].items()}
        boxes = found.pop("bboxes")
        boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
        results[one["img_id"]] = Detections(boxes, **found)
    curves = precision_recall(results, truth, iou_type)
    expected = [reported[f"{iou_type}_mAP{end}"] for end in ("", "_50", "_75", "_s", "_m", "_l")]
    np.testing.assert_allclose(curves.means(), expected, atol=6e-4)
    of_classes = [reported[f"{name}_precision"] for name in names]
    np.testing.assert_allclose(curves.figures[:, 0], of_classes, atol=6e-4)
    image = samples[0]["img_id"]
    assert truth.have_masks() and len(truth.masks(image)) == len(truth.of(image)[0])


def test_result_files(tmp_path):
    truth = annotations([(1, "cat", BOX, False), (2, "dog", BOX, False)])
    path = tmp_path / "results.json"
    coco = [
        dict(image_id=1, category_id=5, bbox=BOX, score=0.9),
        dict(image_id=2, category_id=15, bbox=BOX, score=0.8),
    ]
    predictions = dict(  # of `ropevit predict`, with its own ids
        images=[dict(id=7, file_name="data/val/2.png"), dict(id=8, file_name="data/val/1.png")],
        categories=[dict(id=1, name="dog"), dict(id=2, name="cat")],
        annotations=[
            dict(image_id=7, category_id=1, bbox=BOX, score=0.8),
            dict(image_id=8, category_id=2, bbox=BOX, score=0.9),
        ],
    )
    for content, expected in ((coco, ()), (predictions, ("dog", "cat"))):
        path.write_text(json.dumps(content))
        results, names = read_results(path)
        matrix = matrix_of(truth.match(results), truth)
        assert names == expected and matrix[0, 0] == matrix[1, 1] == 1 and matrix.sum() == 2
    path.write_text(json.dumps(predictions | dict(annotations=[])))
    assert [len(one.boxes) for one in truth.match(read_results(path)[0]).values()] == [0, 0]
    path.write_text("[]")
    assert read_results(path) == ({}, ())
    mask = rle.encode(np.pad(np.ones((4, 6), np.uint8, order="F"), ((2, 0), (3, 0))))
    coco[0] |= dict(bbox=[0, 0, 0, 0], segmentation=dict(mask, counts=mask["counts"].decode()))
    path.write_text(json.dumps(coco))  # of a detector that predicts only masks
    first, second = read_results(path)[0].values()
    assert first.boxes.tolist() == [[3, 2, 6, 4]] and len(first.masks) == 1
    assert second.boxes.tolist() == [BOX] and not second.masks


RESULT = '[{"image_id": 1, "category_id": 5, "score": %s, "bbox": %s}]'
CASES = ("", "[1]", '{"a": 1}', '[{"image_id": 3}]', RESULT % (1, "[1, 2, 3]"),
         RESULT % (1, "null"), RESULT % ('"high"', "[1, 2, 3, 4]"))  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_files_without_results(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json has no COCO results"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(("image", "category"), [(7, 5), (1, 99), ("7.png", "cat"), (1, "bird")])
def test_results_of_other_data(image, category):
    truth = annotations([(1, "cat", BOX, False)])
    found = Detections(np.zeros((1, 4)), np.array([category], object), np.ones(1))
    match = r"(an image ('7\.png'|7)|a category ('bird'|99)) that the annotations lack"
    with pytest.raises(UserError, match=match):
        truth.match({image: found})
