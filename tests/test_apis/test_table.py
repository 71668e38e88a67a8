"""The tables and the figure of a comparison."""

import csv
import io

import pytest

from ropevit_mmdet.apis.compare.figure import plot_cost
from ropevit_mmdet.apis.compare.table import comma_separated, markdown, rows_of, split_evaluator

COST = {"parameters, M": 2.0, "backbone, M": 1.0, "GFLOP": 3.5, "images/s": 4.0, "peak MB": 4.0}


def result(ap, circle, prefix="box", metric="bbox"):
    """As a run keeps it; the images have no large object."""
    names = {f"{prefix}/{metric}_mAP{end}": ap for end in ("", "_50", "_75", "_s", "_m")}
    metrics = {**names, f"{prefix}/{metric}_mAP_l": None, f"{prefix}/circle_precision": circle}
    return {"metrics": metrics, "train_seconds": 10.0}


def test_tables_have_means_and_spreads():
    """And escaped names of classes."""
    results = [result(0.25, 0.5), result(0.35, 0.7)]
    for one in results:
        one["metrics"]["box/cup|mug\n(any)_precision"] = 0.25
    rows = rows_of({"ours": results}, {"ours": COST})
    text = markdown(rows)
    assert r"|  | box circle | box cup\|mug (any) |" in text
    assert "| ours | 30.0 ± 5.0 | 30.0 ± 5.0 |" in text and "| none |" in text
    assert "| ours | 60.0 ± 10.0 | 25.0 ± 0.0 |" in text
    (row,) = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert row["box AP"] == "30.0" and row["box AP spread"] == "5.0" and row["images/s"] == "4.0"
    assert row["box circle"] == "60.0" and row["GFLOP"] == "3.5"
    assert row["box APl"] == row["box APl spread"] == ""


def test_a_run_without_detections_has_zeros():
    """It has no metrics of classes, and does not know that there is no large object."""
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


@pytest.mark.parametrize(("prefix", "metric"), [("box", "bbox"), ("mask", "segm")])
def test_only_boxes_or_only_masks_are_plotted(tmp_path, prefix, metric):
    (evaluator,) = split_evaluator(dict(type="CocoMetric", metric=metric, prefix="coco"))
    assert (evaluator["prefix"], evaluator["metric"]) == (prefix, metric)
    rows = rows_of({"ours": [result(0.5, 0.5, prefix, metric)]}, {"ours": COST})
    assert next(iter(rows[0]["AP"].items())) == (f"{prefix} AP", (50.0, 0.0))
    plot_cost(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_boxes_and_masks_are_evaluated_separately():
    evaluators = split_evaluator(dict(type="CocoMetric", metric=["bbox", "segm"], ann_file="a"))
    metrics = [(one["prefix"], one["metric"]) for one in evaluators]
    assert metrics == [("box", "bbox"), ("mask", "segm")]
