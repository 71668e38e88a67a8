"""Figures of results: long and unusual class names, few and many classes; the command."""

import io
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmdet.evaluation import CocoMetric
from PIL import Image

from ropevit_mmdet.visualization import plot_confusion_matrix, plot_precision_recall
from tests.commands import fails, ropevit
from tests.tiny_coco import write_tiny

RECALL = np.linspace(0, 1, 101)
IOUS = (0.5, 0.75)


@pytest.fixture
def figures(monkeypatch):
    """The saved figures, after rendering."""
    figures = []
    save = Figure.savefig

    def savefig(figure, *args, **settings):
        save(figure, io.BytesIO())
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def plot_all(directory, names, precision=None):
    precision = np.ones((2, 101, len(names))) if precision is None else precision
    matrix = np.eye(len(names) + 1, dtype=int)
    plot_confusion_matrix(matrix, names, directory / "a.png", "title")
    plot_precision_recall(names, RECALL, precision, IOUS, directory / "b.png")


def test_names_are_escaped(tmp_path, figures):
    """A dollar starts no formula, an underscore hides no name, and a lone surrogate is replaced."""
    plot_all(tmp_path, ("$a_b$", "_background_", "c\ud800"))
    label = figures[0].axes[0].get_xticklabels()[0]
    assert label._preprocess_math(label.get_text()) == ("$a_b$", False)
    legend = [text.get_text() for text in figures[1].axes[0].get_legend().get_texts()]
    assert [text.split()[0] for text in legend[:3]] == [r"\$a_b\$", "_background_", "c?"]


@pytest.mark.parametrize("classes", [12, 80])
def test_long_names_leave_space_for_cells_and_curves(tmp_path, figures, classes):
    plot_all(tmp_path, [f"{'a very long name of a class ' * 4}{i}" for i in range(classes)])
    cell = figures[0].axes[0].get_window_extent().width / (classes + 1) / figures[0].dpi
    assert cell > (0.4 if classes < 30 else 0.12)  # inches
    for axis in figures[1].axes:
        inside, legend = axis.get_window_extent(), axis.get_legend().get_window_extent()
        assert inside.x0 < legend.x0 and legend.x1 < inside.x1


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_classes_without_objects_are_skipped(tmp_path, figures):
    precision = np.zeros((2, 101, 2))
    precision[:, :, 1] = np.nan
    plot_all(tmp_path, ("cat", "dog"), precision)
    plot_all(tmp_path, ("cat", "dog"), np.full((2, 101, 2), np.nan))
    legends = [[t.get_text() for t in f.axes[0].get_legend().get_texts()] for f in figures[1::2]]
    assert legends == [["cat 0.000"], ["no objects"]]


def test_the_command_plots_the_ap_of_the_test(tmp_path, capsys):
    """For boxes that are shifted annotations, so that AP is neither 0 nor 1."""
    config = write_tiny(tmp_path)
    boxes = [[20 + shift, 10 + shift, 24, 20] for shift in (0.0, 3.0, 7.0, 12.0)]
    labels = [1, 0, 1, 1]  # the label of an image is its id % 2, so the last one is wrong
    metric = CocoMetric(ann_file=str(tmp_path / "data" / "annotations.json"), metric="bbox")
    metric.dataset_meta, rows = dict(classes=("dark", "light")), []
    for i, (label, (x, y, w, h)) in enumerate(zip(labels, boxes, strict=True)):
        row = dict(image_id=i + 1, category_id=label + 1, bbox=[x, y, w, h], score=0.9 - 0.2 * i)
        rows.append(row)
        found = dict(bboxes=torch.tensor([[x, y, x + w, y + h]]), labels=torch.tensor([label]))
        found["scores"] = torch.tensor([row["score"]])
        metric.process({}, [dict(img_id=i + 1, ori_shape=(56, 64), pred_instances=found)])
    (tmp_path / "results.bbox.json").write_text(json.dumps(rows))
    expected = metric.evaluate(size=len(rows))
    out = tmp_path / "figures"
    argv = ["--config", config, "--out-dir", out]
    ropevit("plot", tmp_path / "results.bbox.json", *argv)
    numbers = json.loads((out / "results.json").read_text())
    for iou, key in (("0.5", "coco/bbox_mAP_50"), ("0.75", "coco/bbox_mAP_75")):
        assert numbers["precision_recall"][iou]["ap"] == pytest.approx(expected[key], abs=6e-4)
    assert 0 < expected["coco/bbox_mAP_75"] < expected["coco/bbox_mAP_50"] < 1
    assert np.sum(numbers["confusion_matrix"]) >= 4
    for name in ("confusion_matrix.png", "precision_recall.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG"
    argv = ["--config", config, "--out-dir", tmp_path / "new"]
    (tmp_path / "result.pkl").write_bytes(b"\x80\x02]q\x00.")
    for name in ("gone.json", tmp_path / "result.pkl"):
        assert "ropevit test --out" in fails(capsys, "plot", name, *argv)
    argv = [out / "results.json", "--config", config, "--out-dir", out]
    assert "would overwrite" in fails(capsys, "plot", *argv)
    assert not (tmp_path / "new").exists()


def test_the_command_compares_classes_and_counts_only_predicted_images(tmp_path, capsys):
    config, file = write_tiny(tmp_path), tmp_path / "predictions.json"
    argv = ["plot", file, "--config", config, "--out-dir", tmp_path / "out"]

    def write(*names):
        categories = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
        images = [dict(id=1, file_name="images/1.png")]  # of four
        file.write_text(json.dumps(dict(images=images, categories=categories, annotations=[])))

    write("light", "dark")
    assert "classes in another order" in fails(capsys, *argv)
    write("dark", "light")
    ropevit(*argv)
    matrix = json.loads((tmp_path / "out" / "results.json").read_text())["confusion_matrix"]
    assert matrix == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
