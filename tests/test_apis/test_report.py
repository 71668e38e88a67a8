"""The report: one HTML file, its numbers and thumbnails, what an input lacks, malformed input."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from ropevit_mmdet.apis.ground_truth import load_results
from ropevit_mmdet.apis.report import errors, page, run
from ropevit_mmdet.apis.report.figures import Figure
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.confusion_matrix import pair_objects
from tests import oracle
from tests.commands import fails, ropevit
from tests.test_evaluation.test_precision_recall import BOX, annotations, result
from tests.test_visualization.test_run_log import iteration, write_part
from tests.tiny_coco import write_tiny

NAMES = ("</option><script>alert('a')</script>", '"b" onload="$c$ {{ 7 * 7 }} 中')
VERSIONS = "System environment:\n    Python: 3.11.7 (main)\n    PyTorch: 2.15.0\n"


class Page(HTMLParser):
    """A page: cells of table rows, attributes of the errors, all attributes, tags and text."""

    def __init__(self, path):
        super().__init__()
        self.rows, self.errors, self.attributes, self.tags, self.text = [[]], [], [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.errors += [dict(attrs)] if "data-type" in dict(attrs) else []
        self.rows += [[]] if tag == "tr" else []

    def handle_data(self, data):
        self.text += data
        if self.lasttag in ("td", "th") and data.strip():
            self.rows[-1].append(data.strip())


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """A resumed run of a detector with a RoPE ViT on four images, with all types of errors."""
    directory = tmp_path_factory.mktemp("report")
    config = load_config(write_tiny(directory, categories=NAMES, classes=NAMES))
    arch = dict(oracle.SMALL, hidden_dim=16, mlp_dim=32)
    config.model.backbone = dict(
        type="RoPEViT", arch=arch, pretrain_img_size=56, out_indices=(1, 3)
    )
    config.model.neck.in_channels = [16, 16]
    work_dir = directory / "run & more"
    metrics = {"coco/bbox_mAP": 0.25, "coco/bbox_mAP_s": -1.0, "step": 2}
    write_part(work_dir, "20260101_000000", [iteration(1, loss=3.0, lr=0.1)])
    write_part(work_dir, "20260102_000000", [iteration(2, loss=2.0, lr=0.1), metrics])
    start = work_dir / "20260102_000000"
    config.dump(start / "vis_data" / "config.py")
    (start / "20260102_000000.log").write_text(VERSIONS)
    torch.save({"state_dict": build_detector(config).state_dict()}, work_dir / "iter_2.pth")
    polygons = [[20, 10, 44, 10, 44, 30, 20, 30]]
    mask = rle.merge(rle.frPyObjects(polygons, 56, 64))
    mask["counts"] = mask["counts"].decode()
    boxes = [(1, 2, [20, 10, 24, 20], 0.9), (2, 2, [20, 10, 24, 20], 0.8),
             (3, 2, [40, 40, 24, 16], 0.7), (4, 1, [20, 10, 24, 20], 0.2)]  # fmt: skip
    rows = [
        dict(image_id=image, category_id=category, bbox=box, score=score, segmentation=mask)
        for image, category, box, score in boxes
    ]
    (work_dir / "results.json").write_text(json.dumps(rows))
    return work_dir


@pytest.fixture
def no_figures(monkeypatch):
    """Figures without their rendering, which takes most of the time."""
    monkeypatch.setattr(run, "render", lambda figure, caption: Figure(caption, "data:", 1))
    monkeypatch.setattr(run, "curves", lambda _: [])


def test_a_report_of_a_run(work_dir, tmp_path):
    assert ropevit("report", work_dir, "-o", tmp_path / "new" / "report.html") == 0
    (out,) = (tmp_path / "new").iterdir()
    report = Page(out)
    assert out.stat().st_size < 1e6 and report.text.count("alert") > 2
    assert "onload" not in dict(report.attributes) and "link" not in report.tags
    sources = [value for key, value in report.attributes if key in ("src", "href")]
    assert len(sources) > 8 and all(one.startswith("data:image/webp;base64,") for one in sources)
    table = {row[0]: row[1:] for row in report.rows if row}
    assert table["class"][:4] == ["objects", "box AP", "box AP50", "box AP75"]
    # One of two objects of each class was found: recall 0 to 0.5 of 101 values.
    assert table[NAMES[1]][:3] == ["2", "0.505", "0.505"] and table["all"][:2] == ["4", "0.505"]
    assert table[NAMES[1]][7] == "0.835"  # the mask in the third image is right, its box is not
    assert table["PyTorch"] == ["2.15.0"] and table["training"] == ["2 iterations, 2 s"]
    shown = [(one["data-type"], one["data-labels"], one["data-score"]) for one in report.errors]
    false = [("other class", "1 0", "0.8"), ("background", "1", "0.7")]
    assert shown == [*false, ("missed", "1", "0.0"), ("missed", "0", "0.2")]
    assert "Features of the last block" in report.text
    assert "Not in this report" not in report.text


def test_what_an_input_lacks_is_named(work_dir, tmp_path, no_figures):
    config = work_dir / "20260102_000000" / "vis_data" / "config.py"
    ropevit("report", work_dir / "results.json", "--config", config, "-o", tmp_path / "a.html")
    report = Page(tmp_path / "a.html")
    for indices, images in (("2", [1, 2]), ("-1", [4]), ("[2]", [3])):
        tested = load_config(config, [f"test_dataloader.dataset.indices={indices}"])
        assert load_results(work_dir / "results.json", tested)[1].image_ids == images
    for others in ([], [tested.test_evaluator, dict(ann_file="other.json")]):
        tested.test_evaluator = others
        with pytest.raises(UserError, match=f"must have one ann_file, but has {len(others)}"):
            load_results(work_dir / "results.json", tested)
    assert "add --checkpoint CHECKPOINT" in report.text and len(report.errors) == 4
    bare = tmp_path / "bare"
    write_part(bare, "20260101_000000", [])
    shutil.copy(work_dir / "results.json", bare)
    (bare / "20260101_000000" / "vis_data" / "config.py").write_text(
        config.read_text().replace("annotations.json", "gone.json")
    )
    ropevit("report", bare, "-o", tmp_path / "b.html")
    text = Page(tmp_path / "b.html").text
    assert "curves: " in text and "has no log" in text and "features: add" in text
    assert "results: annotation file" in text and "gone.json does not exist" in text


def test_a_report_of_a_comparison(work_dir, tmp_path, no_figures):
    shutil.copytree(work_dir, tmp_path / "ours-seed0", ignore=shutil.ignore_patterns("*.pth"))
    costs = {"parameters, M": 2.0, "images/s": 4.0}
    rows = [dict(name=name, seeds=2, AP={"box AP": ap, "box APl": None}, costs=costs)
            for name, ap in (("ours", [30.0, 5.0]), ("moved", [10.0, 0.0]))]  # fmt: skip
    (tmp_path / "comparison.json").write_text(json.dumps(rows))
    (tmp_path / "comparison.md").write_text("\nWithout <b>: it failed\n")
    page.write_report(tmp_path, tmp_path / "report.html")
    report = Page(tmp_path / "report.html")
    assert ["ours", "30.0 ± 5.0", "none", "2", "4"] in report.rows
    assert ["coco/bbox_mAP", "0.250"] not in report.rows  # results.json has them all
    assert "Without <b>: it failed" in report.text and len(report.errors) == 4
    (tmp_path / "comparison.json").write_text("[{}]")
    with pytest.raises(ValueError, match="is no result of `ropevit compare`"):
        page.write_report(tmp_path, tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_malformed_input_writes_nothing(work_dir, tmp_path, capsys, no_figures):
    config = work_dir / "20260102_000000" / "vis_data" / "config.py"
    other = tmp_path / "other.json"
    other.write_text("{}")
    for argv, message in (
        ([tmp_path], "no run, comparison or results"),
        ([other], "results need --config CONFIG"),
        ([other, "--config", config], "other.json has no COCO results"),
        ([work_dir, "--checkpoint", tmp_path / "gone.pth"], "gone.pth"),
        ([work_dir, "-o", tmp_path], "is a directory"),
    ):
        assert message in fails(capsys, "report", "-o", tmp_path / "out.html", *argv)
    assert not (tmp_path / "out.html").exists()


def test_types_of_errors():
    """A duplicate, a poor box, background, another class; low detections of a missed object."""
    far = [60, 60, 20, 20]
    truth = annotations([(1, "cat", BOX, 0), (1, "dog", [40, 0, 20, 20], 0), (2, "cow", far, 0)])
    results = {
        1: result(("cat", BOX, 0.9), ("cat", [0, 0, 20, 19], 0.8), ("cat", [0, 12, 20, 20], 0.7),
                  ("cat", [0, 60, 20, 20], 0.6), ("cow", [40, 0, 20, 20], 0.5)),
        2: result(("cow", far, 0.1), ("cow", [0, 0, 9, 9], 0.2), ("dog", far, 0.2)),
    }  # fmt: skip
    thresholds = dict(score_thr=0.3, tp_iou_thr=0.5)
    mistakes = errors.find_mistakes(pair_objects(results, truth), results, **thresholds)
    shown = [(one.type, one.labels, one.score) for one in mistakes]
    assert shown == [("duplicate", [0], 0.8), ("localization", [0], 0.7), ("background", [0], 0.6),
                     ("other class", [2, 1], 0.5), ("missed", [2], 0.1)]  # fmt: skip
    assert [one.score for one in errors.worst(mistakes[:4], 3)] == [0.8, 0.7, 0.5]  # by class
    image = np.zeros((100, 90, 3), np.uint8)
    for one in mistakes:
        pixels = errors.thumbnail(image, one, truth)
        assert pixels.shape == (256, 512, 3)
        assert pixels[:, 256:].any() == (one.type != "missed")  # no detection is near it
        assert pixels[:, :256].any() == (one.type != "background")
