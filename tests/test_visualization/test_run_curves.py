"""Curves of runs: the plotted values, the legend, the command."""

import pytest
from PIL import Image

from ropevit_mmdet.visualization import plot_runs, read_run
from ropevit_mmdet.visualization.run_log import RunLog
from tests.commands import fails, ropevit
from tests.test_visualization.test_run_log import iteration, resumed  # noqa: F401  (a fixture)

EMPTY = [dict(step=10, time=0.1, data_time=0.1)]  # mmdet's validation without detections


def test_every_scalar_has_a_panel_and_every_run_a_line(resumed):  # noqa: F811
    other = RunLog("other", [iteration(10, loss_cls=0.5)], [])
    panels = {
        axis.get_title(): {
            line.get_label(): list(zip(*line.get_data(orig=True), strict=True))
            for line in axis.get_lines()
        }
        for axis in plot_runs([read_run(resumed), other]).axes
    }
    assert list(panels)[:4] == ["loss (sum)", "loss_cls", "learning rate", "coco/bbox_mAP"]
    assert panels["loss (sum)"]["run"] == [(5, 5), (10, 10), (15, 115), (20, 120)]
    assert panels["loss_cls"] == {"other": [(10, 0.5)]}
    assert panels["coco/bbox_mAP"] == {"run": [(10, 0.1), (20, 0.3)]}


def test_every_name_is_in_the_legend_and_no_metric_is_needed():
    """A dollar starts no formula, an underscore hides no name, and a lone surrogate is replaced."""
    names = ("_x", "$a$ $b$", "c\ud800")
    figure = plot_runs([RunLog(name, [iteration(10)], EMPTY) for name in names])
    assert [axis.get_title() for axis in figure.axes] == ["loss (sum)"]
    texts = figure.legends[0].get_texts()
    shown = [text._preprocess_math(text.get_text())[0].strip() for text in texts]
    assert shown == ["_x", "$a$ $b$", "c?"]


def test_runs_that_cannot_be_plotted_are_errors(resumed):  # noqa: F811
    run = read_run(resumed)
    for runs, metric, message in (
        ([run], "coco/segm_mAP", r"'coco/segm_mAP'; available: coco/bbox_mAP$"),
        ([run, run], "coco/bbox_mAP", "two runs have the same name: run, run"),
        ([RunLog("a", [], EMPTY)], "coco/bbox_mAP", "nothing to plot yet"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_runs(runs, metric=metric)


def test_the_command_names_runs_and_prints_the_best_metric(resumed, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "new" / "out.png"
    ropevit("plot", f"one={resumed}", resumed, "--out", out)
    output = capsys.readouterr().out
    assert "one: loss 120 at iteration 20, best coco/bbox_mAP 0.300 at iteration 20" in output
    with Image.open(out) as image:
        assert image.format == "PNG"
    assert "has no log" in fails(capsys, "plot", tmp_path / "gone")
    assert "must end in .png" in fails(capsys, "plot", resumed, "--out", "a.pdf")
