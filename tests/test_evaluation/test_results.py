"""Results: read without running code, counted into a matrix, drawn as curves whose mean is AP."""

import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ropevit_mmdet.apis.ground_truth import read_coco
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.evaluation.result_file import ImageResult, read_results
from ropevit_mmdet.evaluation.results import (
    Annotations,
    PrecisionRecall,
    annotation_file,
    as_json,
    confusion_matrix,
    precision_recall,
)
from ropevit_mmdet.visualization import results_figure
from ropevit_mmdet.visualization.results_figure import plot_confusion_matrix, plot_precision_recall
from tests.malformed_files import Payload
from tests.test_cli.test_tools import fails, load_tool, test, trained  # noqa: F401  (a fixture)

plot_results = load_tool("plot_results")
NAMES = ("cat", "dog", "cow")


def annotations(directory, objects, names=NAMES):
    """Of two images, 1 and 2; objects are (image, class, box x y w h, crowd)."""
    found = [
        dict(id=number, image_id=image, category_id=10 * names.index(name) + 5, bbox=box,
             area=box[2] * box[3], iscrowd=int(crowd))
        for number, (image, name, box, crowd) in enumerate(objects, start=1)
    ]  # fmt: skip
    content = dict(
        images=[dict(id=i, file_name=f"{i}.png", width=100, height=100) for i in (1, 2)],
        annotations=found,
        categories=[dict(id=10 * i + 5, name=name) for i, name in enumerate(names)],
    )
    for one in found:
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (directory / "annotations.json").write_text(json.dumps(content))
    return Annotations(read_coco(directory / "annotations.json"), names)


def result(image, *found):
    """Of (class, box x y w h, score)."""
    boxes = np.array([[x, y, x + w, y + h] for _, (x, y, w, h), _ in found], float).reshape(-1, 4)
    labels = np.array([NAMES.index(name) for name, _, _ in found], int)
    return ImageResult(image, boxes, labels, np.array([score for *_, score in found], float))


def test_a_confusion_matrix_made_by_hand(tmp_path):
    truth = annotations(
        tmp_path,
        [
            (1, "cat", [0, 0, 20, 20], False),
            (1, "dog", [40, 0, 20, 20], False),
            (1, "cow", [0, 40, 20, 20], False),  # missed
            (1, "cow", [60, 60, 40, 40], True),  # a crowd
            (2, "cat", [0, 0, 20, 20], False),
            (2, "dog", [50, 50, 20, 20], False),
        ],
    )
    results = [
        result(
            1,
            ("cat", [0, 0, 20, 18], 0.9),  # right
            ("cat", [0, 2, 20, 18], 0.8),  # the same object again: background
            ("cow", [40, 0, 20, 20], 0.95),  # a dog for a cow, beside
            ("dog", [44, 0, 20, 20], 0.4),  # the right one, of smaller overlap and score
            ("cow", [70, 70, 10, 10], 0.7),  # in the crowd: does not count
            ("dog", [0, 80, 10, 10], 0.7),  # nothing there
            ("cow", [0, 40, 20, 20], 0.1),  # right, but of a low score
        ),
        result(2, ("dog", [0, 0, 20, 20], 0.6)),  # a cat for a dog
    ]
    expected = [  # cat, dog, cow, missed
        [1, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 1],
        [1, 1, 1, 0],
    ]
    matrix = confusion_matrix(results, truth)
    assert matrix.tolist() == expected
    assert matrix[:-1].sum() == 5 and matrix[:, :-1].sum() == 6  # objects; detections that count
    assert confusion_matrix(results, truth, score_thr=0.0)[2].tolist() == [0, 0, 1, 0]
    # At an IoU of .95, the two of exact boxes are left: the second dog, and a dog for a cow.
    strict = confusion_matrix(results, truth, tp_iou_thr=0.95)
    assert strict.tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 0, 0]]
    nothing = confusion_matrix([], truth)
    assert nothing[:, -1].tolist() == [2, 2, 1, 0] and nothing.sum() == 5


def test_curves_made_by_hand(tmp_path):
    """Two of four cats found before a false one, and the third after it; a dog at an IoU of .6."""
    box = [0, 0, 20, 20]
    truth = annotations(
        tmp_path,
        [(1, "cat", [25 * i, 0, 20, 20], False) for i in range(4)] + [(2, "dog", box, False)],
    )
    cats = [("cat", [25 * i, 0, 20, 20], 0.9 - 0.1 * i) for i in range(2)]
    cats += [("cat", [0, 60, 20, 20], 0.5), ("cat", [50, 0, 20, 20], 0.4)]
    curves = precision_recall([result(1, *cats), result(2, ("dog", [0, 0, 12, 20], 0.3))], truth)
    cat = np.where(curves.recall <= 0.5, 1.0, np.where(curves.recall <= 0.75, 0.75, 0.0))
    np.testing.assert_allclose(curves.precision[0, :, 0], cat)
    np.testing.assert_allclose(curves.precision[1, :, 0], cat)
    np.testing.assert_allclose(curves.precision[:, :, 1], [[1] * 101, [0] * 101])
    assert np.isnan(curves.precision[:, :, 2]).all()  # no cows at all
    assert curves.average(0) == pytest.approx((cat.mean() + 1) / 2)
    numbers = as_json(np.zeros((4, 4), int), curves, score_thr=0.3, tp_iou_thr=0.5)
    found = numbers["precision_recall"]["0.75"]
    assert found["classes"]["cow"] == {"ap": None, "precision": None}
    assert found["classes"]["cat"]["ap"] == pytest.approx(cat.mean(), abs=1e-6)
    assert json.loads(json.dumps(numbers)) == numbers


def test_results_of_other_data_are_errors(tmp_path):
    truth = annotations(tmp_path, [(1, "cat", [0, 0, 20, 20], False)])
    with pytest.raises(ValueError, match="have an image 7 that the annotations lack"):
        confusion_matrix([result(7)], truth)
    found = ImageResult(1, np.zeros((1, 4)), np.array([3]), np.ones(1))
    with pytest.raises(ValueError, match="a label 3, there are 3"):
        confusion_matrix([found], truth)
    with pytest.raises(ValueError, match="no class 'horse', but cat, dog, cow"):
        Annotations(truth.coco, ("cat", "horse"))


def test_files_are_read_without_running_them(tmp_path):
    path = tmp_path / "result.pkl"
    entry = {
        "img_id": 3,
        "ori_shape": (4, 5),
        "scale_factor": (np.float64(0.5), np.float32(2.0)),
        "pred_instances": {
            "bboxes": torch.tensor([[1.0, 2, 3, 4], [0, 0, 1, 1]])[:1],
            "labels": torch.tensor([2]),
            "scores": np.array([0.5], np.float32),
            "masks": [{"size": [4, 5], "counts": b"abc"}],
        },
    }
    for protocol in (2, 4):  # mmengine writes the first
        path.write_bytes(pickle.dumps([entry], protocol=protocol))
        (one,) = read_results(path)
        assert one.image_id == 3 and one.boxes.tolist() == [[1, 2, 3, 4]]
        assert one.labels.tolist() == [2] and one.scores.tolist() == [0.5]

    payload = Payload(os.mkdir, str(tmp_path / "ran"))
    path.write_bytes(pickle.dumps([payload]))
    with pytest.raises(ValueError, match=r"refused: it holds \w+\.mkdir"):
        read_results(path)
    torch.save(payload, tmp_path / "inner.pt")  # what torch's own function would run
    inner = pickle.dumps((tmp_path / "inner.pt").read_bytes(), protocol=0)[:-1]
    path.write_bytes(b"ctorch.storage\n_load_from_bytes\n(" + inner + b"tR.")
    with pytest.raises(ValueError, match="refused: it holds a damaged tensor, or one that could"):
        read_results(path)
    assert not (tmp_path / "ran").exists()

    for content, said in (
        (pickle.dumps([entry])[:-20], "truncated"),
        (b"", "truncated"),
        (pickle.dumps({"a": 1}), "holds no list of images"),
        (pickle.dumps([{"img_id": 3}]), "holds no boxes of images"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_results(path)
    with pytest.raises(ValueError, match=r"gone\.pkl does not exist"):
        read_results(tmp_path / "gone.pkl")


def test_the_mean_of_the_curves_is_what_the_test_reported(trained, tmp_path, capsys):  # noqa: F811
    """On boxes made from the annotations by moving them, so that AP is neither 0 nor 1."""
    config_path, checkpoint = trained
    config = load_config(config_path)
    out = tmp_path / "result.pkl"
    test.main([str(config_path), str(checkpoint), "--work-dir", str(tmp_path), "--out", str(out)])
    entries = pickle.loads(out.read_bytes())
    shifts = torch.tensor([[0.0], [3.0], [7.0], [12.0]])
    for number, (entry, shift) in enumerate(zip(entries, shifts)):
        boxes = torch.tensor([[20.0, 10, 44, 30]]) + shift
        labels = torch.tensor([int(entry["img_id"]) % 2])
        if number == 3:
            labels = 1 - labels
        scores = torch.tensor([0.9 - 0.2 * number])
        entry["pred_instances"] = dict(bboxes=boxes, labels=labels, scores=scores)
    out.write_bytes(pickle.dumps(entries))

    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=str(annotation_file(config)), metric="bbox")
    metric.dataset_meta = dict(classes=("dark", "light"))
    metric.process({}, entries)
    reported = metric.evaluate(size=len(entries))
    directory = tmp_path / "figures"
    plot_results.main([str(config_path), str(out), "--out-dir", str(directory)])
    numbers = json.loads((directory / "results.json").read_text())
    for iou, key in (("0.5", "coco/bbox_mAP_50"), ("0.75", "coco/bbox_mAP_75")):
        assert numbers["precision_recall"][iou]["ap"] == pytest.approx(reported[key], abs=6e-4)
    assert 0 < reported["coco/bbox_mAP_75"] < reported["coco/bbox_mAP_50"] < 1
    assert np.sum(numbers["confusion_matrix"]) >= 4
    for name in ("confusion_matrix.png", "precision_recall.png"):
        with Image.open(directory / name) as image:
            assert image.format == "PNG"
    gone = ["gone.pkl", "--out-dir", str(tmp_path / "new")]
    assert "gone.pkl does not exist" in fails(capsys, plot_results.main, config_path, *gone)
    assert not (tmp_path / "new").exists()
    argv = ["gone.py", "gone.pkl", "--out-dir", str(out)]
    assert f"{out} is a file" in fails(capsys, plot_results.main, *argv)


def test_a_detector_that_finds_nothing_is_drawn_as_such(tmp_path):
    truth = annotations(
        tmp_path, [(1, "cat", [0, 0, 20, 20], False), (2, "cow", [0, 0, 9, 9], True)]
    )
    found = [result(1), result(2)]
    matrix, curves = confusion_matrix(found, truth), precision_recall(found, truth)
    assert matrix[0, 3] == matrix.sum() == 1  # a cat that was not found
    assert (curves.precision[:, :, 0] == 0).all() and np.isnan(curves.precision[:, :, 1:]).all()
    numbers = as_json(matrix, curves, score_thr=0.3, tp_iou_thr=0.5)["precision_recall"]["0.5"]
    assert numbers["ap"] == 0 and numbers["classes"]["dog"]["ap"] is None
    plot_precision_recall(curves, tmp_path / "curves.png")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_annotations_without_objects_have_no_precision(tmp_path):
    truth = annotations(tmp_path, [(2, "cow", [0, 0, 9, 9], True)])
    for found in ([result(1)], [result(1, ("cat", [0, 0, 20, 20], 0.9))]):
        curves = precision_recall(found, truth)
        assert np.isnan(curves.average(0))
        numbers = as_json(confusion_matrix(found, truth), curves, score_thr=0.3, tp_iou_thr=0.5)
        assert numbers["precision_recall"]["0.5"]["ap"] is None
        json.dumps(numbers, allow_nan=False)
        plot_precision_recall(curves, tmp_path / "curves.png")


def test_names_are_shown_letter_by_letter(tmp_path, monkeypatch):
    """A dollar begins no formula, and an underscore takes no name out of the legend."""
    figures = []
    monkeypatch.setattr(results_figure, "save_figure", lambda figure, _: figures.append(figure))
    names = ("$a_b$", "_background_", "c")
    plot_confusion_matrix(np.eye(4, dtype=int), names, tmp_path / "a.png", "title")
    curves = PrecisionRecall(names, np.linspace(0, 1, 101), np.ones((2, 101, 3)))
    plot_precision_recall(curves, tmp_path / "b.png")
    for figure in figures:
        figure.savefig(io.BytesIO())
    label = figures[0].axes[0].get_xticklabels()[0]
    assert label._preprocess_math(label.get_text()) == ("$a_b$", False)
    legend = [text.get_text() for text in figures[1].axes[0].get_legend().get_texts()]
    assert [text.split()[0] for text in legend[:3]] == [r"\$a_b\$", "_background_", "c"]


@pytest.mark.parametrize("classes", [3, 12, 40])
def test_long_names_leave_room_for_what_they_name(tmp_path, monkeypatch, classes):
    figures = []
    monkeypatch.setattr(results_figure, "save_figure", lambda figure, _: figures.append(figure))
    names = [f"{'a name of a class that continues and on ' * 3}{i}" for i in range(classes)]
    plot_confusion_matrix(np.eye(classes + 1, dtype=int), names, tmp_path / "a.png", "title")
    curves = PrecisionRecall(tuple(names), np.linspace(0, 1, 101), np.ones((2, 101, classes)))
    plot_precision_recall(curves, tmp_path / "b.png")
    for figure in figures:
        figure.savefig(io.BytesIO())
    cell = figures[0].axes[0].get_window_extent().width / (classes + 1) / figures[0].dpi
    assert cell > (0.4 if classes < 30 else 0.12)  # inches
    for axis in figures[1].axes:
        inside, legend = axis.get_window_extent(), axis.get_legend().get_window_extent()
        assert inside.x0 < legend.x0 and legend.x1 < inside.x1


def test_eighty_classes_are_drawn(tmp_path):
    names = [f"class number {i}" for i in range(80)]
    random = np.random.default_rng(0)
    matrix = random.integers(0, 9, (81, 81))
    plot_confusion_matrix(matrix, names, tmp_path / "a.png", "many")
    recall = np.linspace(0, 1, 101)
    precision = np.clip(1 - recall[None, :, None] ** random.uniform(0.5, 5, (2, 1, 80)), 0, 1)
    precision[:, :, 3] = np.nan
    plot_precision_recall(PrecisionRecall(tuple(names), recall, precision), tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) < 3000
