"""The table and the figure of a comparison."""

import pytest

from ropevit_mmdet.apis.compare import markdown, plot_cost, rows_of

COST = {"parameters, M": 2.0, "backbone, M": 1.0, "GFLOP": 3.5, "images/s": 4.0, "peak MB": 4.0}


def result(ap, metric="bbox"):
    """As a run keeps it; the images have no large object."""
    metrics = {f"coco/{metric}_mAP{end}": ap for end in ("", "_50", "_75", "_s", "_m")}
    metrics |= {f"coco/{metric}_mAP_l": None, "coco/circle_precision": 0.1}
    return {"metrics": metrics, "train_seconds": 10.0}


def test_the_table_has_means_and_spreads():
    rows = rows_of({"ours": [result(0.25), result(0.35)]}, {"ours": COST})
    (row,) = rows
    assert row["AP"]["box AP50"] == pytest.approx((30.0, 5.0)) and row["AP"]["box APl"] is None
    assert row["costs"] == COST | {"training, s": 10.0}
    text = markdown(rows)
    assert text.count("|  | box AP | box AP50 |") == 1 and "circle" not in text
    assert "| ours | 30.0 ± 5.0 | 30.0 ± 5.0 |" in text and "| none |" in text


def test_a_run_without_detections_does_not_know_that_there_is_no_large_object():
    nothing = result(0.0)
    nothing["metrics"]["coco/bbox_mAP_l"] = 0.0
    results = {"blind": [nothing] * 2, "ours": [nothing, result(0.5)]}
    blind, ours = rows_of(results, dict.fromkeys(results, COST))
    assert blind["AP"] == {**dict.fromkeys(blind["AP"], (0.0, 0.0)), "box APl": None}
    assert ours["AP"]["box AP"] == (25.0, 25.0)


@pytest.mark.parametrize(("name", "metric"), [("box", "bbox"), ("mask", "segm")])
def test_only_boxes_or_only_masks_are_plotted(name, metric):
    rows = rows_of({"ours": [result(0.5, metric)]}, {"ours": COST})
    assert next(iter(rows[0]["AP"].items())) == (f"{name} AP", (50.0, 0.0))
    axis = plot_cost(rows).axes[0]
    assert axis.get_ylabel().startswith(f"{name} AP, percent")
    assert axis.lines[0].get_xydata().tolist() == [[250.0, 50.0]]
