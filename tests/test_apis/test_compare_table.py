"""The tables and the figure of a comparison."""

import csv
import io
import json

import pytest

from ropevit_mmdet.apis.compare.figure import plot_cost
from ropevit_mmdet.apis.compare.table import (
    as_json,
    comma_separated,
    markdown,
    rows_of,
    two_evaluators,
)

COST = dict(
    parameters=2e6, backbone_parameters=1e6, gflops=3.5, seconds_per_image=0.25, peak_bytes=4e6
)


def result(ap, circle, kind="box", metric="bbox"):
    """As it is kept of a run; the images have no large object."""
    names = {f"{kind}/{metric}_mAP{end}": ap for end in ("", "_50", "_75", "_s", "_m")}
    metrics = {**names, f"{kind}/{metric}_mAP_l": None, f"{kind}/circle_precision": circle}
    return {"metrics": metrics, "train_seconds": 10.0}


def test_tables_hold_means_and_spreads():
    rows = rows_of({"ours": [result(0.25, 0.5), result(0.35, 0.7)]}, {"ours": COST})
    text = markdown(rows)
    assert "| ours | 30.0 ± 5.0 | 30.0 ± 5.0 |" in text and "| none |" in text
    assert "| ours | 60.0 ± 10.0 |" in text
    (row,) = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert row["box AP"] == "30.0" and row["box AP spread"] == "5.0" and row["images/s"] == "4.0"
    assert row["box circle"] == "60.0" and row["GFLOP"] == "3.5"
    assert row["box APl"] == row["box APl spread"] == ""
    assert json.loads(as_json(rows))[0]["AP"]["box APl"] is None


def test_names_of_classes_break_no_table():
    found = result(0.5, 0.5)
    found["metrics"]["box/cup|mug\n(any)_precision"] = 0.25
    lines = markdown(rows_of({"ours": [found]}, {"ours": COST})).splitlines()
    assert r"|  | box circle | box cup\|mug (any) |" in lines
    assert "| ours | 50.0 | 25.0 |" in lines


def test_a_run_that_finds_nothing_has_0_in_the_tables():
    """It has no figures of classes, and does not know that there is no large object."""
    nothing = result(0.0, 0.0)
    nothing["metrics"]["box/bbox_mAP_l"] = 0.0
    del nothing["metrics"]["box/circle_precision"]
    results = {"blind": [nothing] * 2, "ours": [nothing, result(0.5, 0.8)]}
    blind, ours = rows_of(results, dict.fromkeys(results, COST))
    assert blind["AP"] == {**dict.fromkeys(blind["AP"], (0.0, 0.0)), "box APl": None}
    assert blind["classes"] == {"box circle": (0.0, 0.0)}
    assert ours["AP"]["box AP"] == (25.0, 25.0) and ours["classes"]["box circle"] == (40.0, 40.0)
    (alone,) = rows_of({"blind": [nothing]}, {"blind": COST})
    assert alone["classes"] == {} and markdown([alone]).count("| blind |") == 1


@pytest.mark.parametrize(("kind", "metric"), [("box", "bbox"), ("mask", "segm")])
def test_boxes_or_masks_alone_are_drawn(tmp_path, kind, metric):
    rows = rows_of({"ours": [result(0.5, 0.5, kind, metric)]}, {"ours": COST})
    assert next(iter(rows[0]["AP"].items())) == (f"{kind} AP", (50.0, 0.0))
    plot_cost(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_no_two_of_many_points_look_alike(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "ropevit_mmdet.apis.compare.figure.save_figure", lambda f, *_, **__: figures.append(f)
    )
    names = [f"net{i}" for i in range(20)]
    plot_cost(rows_of({name: [result(0.5, 0.5)] for name in names}, dict.fromkeys(names, COST)), "")
    points = [bar.lines[0] for bar in figures[0].axes[0].containers]
    assert len({(point.get_color(), point.get_marker()) for point in points}) == 20


def test_boxes_and_masks_are_evaluated_apart():
    evaluators = two_evaluators(dict(type="CocoMetric", metric=["bbox", "segm"], ann_file="a"))
    assert [e["prefix"] for e in evaluators] == ["box", "mask"]
    assert [e["metric"] for e in evaluators] == ["bbox", "segm"]
    (masks,) = two_evaluators(dict(type="CocoMetric", metric="segm"))
    assert masks["prefix"] == "mask"
    with pytest.raises(ValueError, match="must be one CocoMetric"):
        two_evaluators(dict(type="VOCMetric"))
    with pytest.raises(ValueError, match="metric is 'proposal': give bbox or segm"):
        two_evaluators(dict(type="CocoMetric", metric="proposal"))
