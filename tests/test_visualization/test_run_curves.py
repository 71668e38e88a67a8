"""Curves of runs: the plotted values, the legend, the command."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ropevit_mmdet.visualization import RunLog, plot_runs, read_run
from tests.commands import fails, ropevit
from tests.test_visualization.test_run_log import iteration, resumed  # noqa: F401  (a fixture)


@pytest.fixture
def plotted(monkeypatch):
    """The saved figures, by title of their panels: {run: [(x, y), ...]}."""
    figures = []

    def read(figure):
        return {
            axis.get_title(): {
                line.get_label(): list(zip(*line.get_data(orig=True), strict=True))
                for line in axis.get_lines()
            }
            for axis in figure.axes
            if axis.get_lines()
        }

    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(read(self)), save(self, *a, **k))
    )
    return figures


def test_every_scalar_has_a_panel_and_every_run_a_line(resumed, plotted, tmp_path):  # noqa: F811
    other = RunLog("other", [iteration(10, loss_cls=0.5)], [])
    plot_runs([read_run(resumed), other], tmp_path / "new" / "run.png")
    (panels,) = plotted
    assert list(panels) == ["loss (sum)", "loss_cls", "learning rate", "coco/bbox_mAP"]
    assert panels["loss (sum)"]["run"] == [(5, 5), (10, 10), (15, 115), (20, 120)]
    assert panels["loss_cls"] == {"other": [(10, 0.5)]}
    assert panels["coco/bbox_mAP"] == {"run": [(10, 0.1), (20, 0.3)]}
    with Image.open(tmp_path / "new" / "run.png") as image:
        assert image.format == "PNG"


def test_every_name_is_in_the_legend_and_no_metric_is_needed(tmp_path, monkeypatch):
    """mmdet's validation has no metric without detections."""
    names, figures = ("_x", "$a$ $b$", "plain"), []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    empty = [dict(step=10, time=0.1, data_time=0.1)]
    plot_runs([RunLog(name, [iteration(10)], empty) for name in names], tmp_path / "run.png")
    assert [axis.get_title() for axis in figures[0].axes] == ["loss (sum)"]
    texts = figures[0].legends[0].get_texts()
    assert [text._preprocess_math(text.get_text())[0].strip() for text in texts] == list(names)


def test_runs_that_cannot_be_plotted_are_errors(resumed, tmp_path):  # noqa: F811
    run = read_run(resumed)
    empty = RunLog("a", [], [dict(step=1, time=0.1, data_time=0.1)])  # no detections
    for runs, settings, message in (
        ([run], dict(metric="coco/segm_mAP"), r"'coco/segm_mAP'; available: coco/bbox_mAP$"),
        ([run, run], {}, "two runs have the same name: run, run"),
        ([empty], {}, "nothing to plot yet"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_runs(runs, tmp_path / "a.png", **settings)
    assert not list(tmp_path.glob("a.*"))


def test_the_command_names_runs_and_prints_the_best_metric(resumed, tmp_path, capsys, plotted):  # noqa: F811
    out = tmp_path / "out.png"
    ropevit("plot", f"one={resumed}", resumed, "--out", out)
    output = capsys.readouterr().out
    assert "one: loss 120 at iteration 20, best coco/bbox_mAP 0.300 at iteration 20" in output
    assert list(plotted[0]["loss (sum)"]) == ["one", "run"] and out.exists()
    assert "has no log" in fails(capsys, "plot", tmp_path / "gone")
    assert "must end in .png" in fails(capsys, "plot", resumed, "--out", "a.pdf")
