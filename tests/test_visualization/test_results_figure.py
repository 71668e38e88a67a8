"""Figures of results: many classes, classes without objects; the command."""

import json

import numpy as np
import pytest
from PIL import Image

from ropevit_mmdet.visualization import plot_confusion_matrix, plot_precision_recall
from tests.commands import fails, ropevit
from tests.tiny_coco import write_tiny


def test_many_classes_are_summed_up():
    """To those with the most errors; no count is lost."""
    counts = np.diag(np.arange(81))
    counts[7, 3], counts[80, 50], counts[60, 80] = 9, 8, 7
    axis = plot_confusion_matrix(counts, [f"class {i}" for i in range(80)], "title").axes[0]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels[-2:] == ["other classes", "background"] and len(labels) == 27
    cells = {one.get_position(): int(one.get_text() or 0) for one in axis.texts}
    column, row, other = (labels.index(name) for name in ("class 3", "class 7", "other classes"))
    assert cells[column, row] == 9 and cells[labels.index("class 50"), 26] == 8
    assert cells[26, labels.index("class 60")] == 7 and cells[other, other] > 1000
    assert sum(cells.values()) == counts.sum() - 80  # the number of neither is not shown


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_classes_without_objects_are_skipped():
    precision, recall = np.full((2, 101, 2), np.nan), np.linspace(0, 1, 101)
    for expected in (["no objects"], ["cat 0.000"]):
        figure = plot_precision_recall(("cat", "dog"), recall, precision, (0.5, 0.75))
        texts = figure.axes[0].get_legend().get_texts()
        assert [text.get_text() for text in texts] == expected
        precision[:, :, 0] = 0.0


def test_the_command_plots_results_and_writes_their_numbers(tmp_path, capsys):
    """One of two objects of the second class is found, the others have another class or box."""
    config, file, out = write_tiny(tmp_path), tmp_path / "results.bbox.json", tmp_path / "figures"
    found = [(1, 2, 20), (2, 2, 20), (3, 2, 40), (4, 1, 40)]
    rows = [
        dict(image_id=image, category_id=category, bbox=[x, 10, 24, 20], score=1 - image / 10)
        for image, category, x in found
    ]
    file.write_text(json.dumps(rows))
    argv = ["--config", config, "--out-dir", out]
    ropevit("plot", file, *argv)
    numbers = json.loads((out / "results.json").read_text())
    assert [one["ap"] for one in numbers["precision_recall"].values()] == [0.252475] * 2
    assert numbers["confusion_matrix"] == [[0, 1, 1], [0, 1, 1], [1, 1, 0]]
    assert "box AP at IoU 0.75: 0.252" in capsys.readouterr().out
    for name in ("confusion_matrix.png", "precision_recall.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG"
    assert "would be overwritten" in fails(capsys, "plot", out / "results.json", *argv)
    argv[-1] = tmp_path / "new"
    (tmp_path / "result.pkl").write_bytes(b"\x80\x02]q\x00.")
    for name in ("gone.json", tmp_path / "result.pkl"):
        assert "ropevit test --out" in fails(capsys, "plot", name, *argv)
    assert "one result file at a time" in fails(capsys, "plot", file, "other.json", *argv)
    assert "--out-dir DIRECTORY" in fails(capsys, "plot", file, *argv, "--out", "figure.png")
    annotations = tmp_path / "data" / "annotations.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["id"] = 0  # COCO's evaluation would miss the object
    annotations.write_text(json.dumps(content))
    assert "annotations with id 0" in fails(capsys, "plot", file, *argv)
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
