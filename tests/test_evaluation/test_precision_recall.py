"""Confusion matrix and precision over recall, compared with values computed by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.confusion_matrix import collapse, confusion_matrix
from ropevit_mmdet.evaluation.precision_recall import as_json, precision_recall
from ropevit_mmdet.evaluation.result_file import ImageResult, read_results
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


def result(image, *detections):
    """Of (class, box x y w h, score)."""
    boxes = np.array([box for _, box, _ in detections], float).reshape(-1, 4)
    ids = [10 * NAMES.index(name) + 5 for name, _, _ in detections]
    return ImageResult(image, boxes, ids, np.array([score for *_, score in detections], float))


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
    results = [
        result(
            1,
            ("cat", [0, 0, 20, 18], 0.9),  # correct
            ("cat", [0, 2, 20, 18], 0.8),  # the same object again: background
            ("cow", [40, 0, 20, 20], 0.95),  # a dog as a cow
            ("dog", [44, 0, 20, 20], 0.4),  # correct, with less overlap and score
            ("cow", [70, 70, 10, 10], 0.7),  # in the crowd: does not count
            ("dog", [0, 80, 10, 10], 0.7),  # background
            ("cow", [0, 40, 20, 20], 0.1),  # correct, but with a low score
        ),
        result(2, ("dog", BOX, 0.6)),  # a cat as a dog
    ]
    expected = [  # cat, dog, cow, missed
        [1, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 1],
        [1, 1, 1, 0],
    ]
    assert confusion_matrix(results, truth).tolist() == expected
    assert confusion_matrix(results, truth, score_thr=0.0)[2].tolist() == [0, 0, 1, 0]
    strict = confusion_matrix(results, truth, tp_iou_thr=0.95)
    assert strict.tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 0, 0]]
    nothing = confusion_matrix([], truth)
    assert nothing[:, -1].tolist() == [2, 2, 1, 0] and nothing.sum() == 5


def test_curves():
    """Two of four cats, a false one, the third cat; a dog at an IoU of .6."""
    cats = [(1, "cat", [25 * i, 0, 20, 20], False) for i in range(4)]
    truth = annotations([*cats, (2, "dog", BOX, False)])
    detections = [("cat", [25 * i, 0, 20, 20], 0.9 - 0.1 * i) for i in range(2)]
    detections += [("cat", [0, 60, 20, 20], 0.5), ("cat", [50, 0, 20, 20], 0.4)]
    results = [result(1, *detections), result(2, ("dog", [0, 0, 12, 20], 0.3))]
    curves = precision_recall(results, truth)
    cat = np.where(curves.recall <= 0.5, 1.0, np.where(curves.recall <= 0.75, 0.75, 0.0))
    np.testing.assert_allclose(curves.precision[0, :, 0], cat)
    np.testing.assert_allclose(curves.precision[1, :, 0], cat)
    np.testing.assert_allclose(curves.precision[:, :, 1], [[1] * 101, [0] * 101])
    assert np.isnan(curves.precision[:, :, 2]).all()  # no cows at all
    assert curves.average(0) == pytest.approx((cat.mean() + 1) / 2)
    numbers = as_json(np.zeros((4, 4), int), curves, score_thr=0.3, tp_iou_thr=0.5)
    classes = numbers["precision_recall"]["0.75"]["classes"]
    assert classes["cow"] == {"ap": None, "precision": None}
    assert classes["cat"]["ap"] == pytest.approx(cat.mean(), abs=1e-6)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers

    other = Annotations(truth.coco, ("dog", "cat"))  # classes in another order than the file's
    swapped = precision_recall(results, other).precision
    np.testing.assert_array_equal(swapped, curves.precision[:, :, [1, 0]])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_without_detections_or_objects():
    truth = annotations([(1, "cat", BOX, False), (2, "cow", [0, 0, 9, 9], True)])
    matrix, curves = confusion_matrix([], truth), precision_recall([], truth)
    assert matrix[0, 3] == matrix.sum() == 1
    assert (curves.precision[:, :, 0] == 0).all() and np.isnan(curves.precision[:, :, 1:]).all()
    truth = annotations([(2, "cow", [0, 0, 9, 9], True)])
    for results in ([], [result(1, ("cat", BOX, 0.9))]):
        assert np.isnan(precision_recall(results, truth).average(0))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_figures_are_those_of_the_test(tmp_path, iou_type):
    metric, samples, names = synthetic(tmp_path, iou_type, classwise=True)
    metric.process({}, samples)
    reported = metric.compute_metrics(metric.results)
    truth = Annotations(metric._coco_api, names)
    results = [
        ImageResult(
            one["img_id"],
            np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1),
            [truth.category_ids[label] for label in one["pred_instances"]["labels"]],
            one["pred_instances"]["scores"].numpy().astype(float),
            one["pred_instances"]["masks"],
        )
        for one in samples
        for boxes in [one["pred_instances"]["bboxes"].numpy().astype(float)]
    ]
    curves = precision_recall(results, truth, iou_type)
    assert curves.average(0) == pytest.approx(reported[f"{iou_type}_mAP_50"], abs=6e-4)
    assert curves.average(1) == pytest.approx(reported[f"{iou_type}_mAP_75"], abs=6e-4)
    for figures, end in zip(curves.figures.T, ("", "_50", "_75", "_s", "_m", "_l"), strict=True):
        expected = reported[f"{iou_type}_mAP{end}"]
        assert np.nanmean(figures) == pytest.approx(expected, abs=6e-4)
    of_classes = [reported[f"{name}_precision"] for name in names]
    np.testing.assert_allclose(curves.figures[:, 0], of_classes, atol=6e-4)
    assert truth.have_masks() and len(truth.masks(samples[0]["img_id"])) == len(
        truth.of(samples[0]["img_id"])[0]
    )


def test_many_classes_are_collapsed():
    """To those with the most errors; no count is lost."""
    matrix = np.diag(np.arange(81))
    matrix[7, 3], matrix[80, 50], matrix[60, 80] = 9, 8, 7
    names = [f"class {i}" for i in range(80)]
    collapsed, shown = collapse(matrix, names, most=4)
    assert shown == ["class 3", "class 7", "class 50", "class 60", "other classes"]
    assert collapsed.shape == (6, 6) and collapsed.sum() == matrix.sum()
    assert collapsed[1, 0] == 9 and collapsed[5, 2] == 8 and collapsed[3, 5] == 7
    assert collapsed[4, 4] == sum(range(80)) - 3 - 7 - 50 - 60
    assert collapse(matrix[:9, :9], names[:8], most=4)[1] == names[:8]


def test_result_files(tmp_path):
    truth = annotations([(1, "cat", BOX, False), (2, "dog", BOX, False)])
    path = tmp_path / "results.json"
    coco = [
        dict(image_id=1, category_id=5, bbox=BOX, score=0.9),
        dict(image_id=2, category_id=15, bbox=BOX, score=0.8),
    ]
    path.write_text(json.dumps(coco))
    results, names = read_results(path)
    assert names == ()
    matrix = confusion_matrix(results, truth)
    assert matrix[0, 0] == matrix[1, 1] == 1 and matrix.sum() == 2
    predictions = dict(  # of `ropevit predict`, with its own ids
        images=[dict(id=7, file_name="data/val/2.png"), dict(id=8, file_name="data/val/1.png")],
        categories=[dict(id=1, name="dog"), dict(id=2, name="cat")],
        annotations=[
            dict(image_id=7, category_id=1, bbox=BOX, score=0.8),
            dict(image_id=8, category_id=2, bbox=BOX, score=0.9),
        ],
    )
    path.write_text(json.dumps(predictions))
    results, names = read_results(path)
    np.testing.assert_array_equal(confusion_matrix(results, truth), matrix)
    path.write_text("[]")
    assert read_results(path) == ([], ())
    mask = rle.encode(np.pad(np.ones((4, 6), np.uint8, order="F"), ((2, 0), (3, 0))))
    coco[0] |= dict(bbox=[0, 0, 0, 0], segmentation=dict(mask, counts=mask["counts"].decode()))
    path.write_text(json.dumps(coco))  # of a detector that predicts only masks
    (first, second), _ = read_results(path)
    assert first.boxes.tolist() == [[3, 2, 6, 4]] and len(first.masks) == 1
    assert second.boxes.tolist() == [BOX] and not second.masks


def test_only_predicted_images_count(tmp_path):
    """`ropevit predict` lists its images, also those without detections."""
    names = ("dog", "cat")
    truth = annotations([(1, "cat", BOX, False), (2, "dog", BOX, False)])
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    document = dict(images=[dict(id=1, file_name="1.png")], categories=categories, annotations=[])
    (tmp_path / "predictions.json").write_text(json.dumps(document))
    results, found = read_results(tmp_path / "predictions.json")
    assert found == names and len(results) == 1
    predicted = Annotations(truth.coco, NAMES, results)
    matrix = confusion_matrix(results, predicted)
    assert (
        matrix[0, 3] == matrix.sum() == 1
    )  # the cat is missed, the image of the dog was not predicted
    precision = precision_recall(results, predicted).precision
    assert (precision[:, :, 0] == 0).all() and np.isnan(precision[:, :, 1]).all()


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '[{"image_id": 3}]'])
def test_files_without_results(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json has no COCO results"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(("image", "category"), [(7, 5), (1, 99)])
def test_results_of_other_data(image, category):
    truth = annotations([(1, "cat", BOX, False)])
    unknown = ImageResult(image, np.zeros((1, 4)), [category], np.ones(1))
    with pytest.raises(UserError, match=r"(an image 7|a category 99) that the annotations lack"):
        confusion_matrix([unknown], truth)
