"""Logs of runs: all parts joined, each step once; and their figures, read back as numbers."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ropevit_mmdet.visualization import run_curves as run_figure
from ropevit_mmdet.visualization.palette import COLORS, line_style
from ropevit_mmdet.visualization.run_curves import plot_runs
from ropevit_mmdet.visualization.run_log import RunLog, elapsed_seconds, read_run
from tests.test_cli.test_tools import fails, load_tool, train
from tests.tiny_coco import write_tiny

plot_run = load_tool("plot_run")


def write_part(work_dir, start, entries):
    directory = work_dir / start / "vis_data"
    directory.mkdir(parents=True)
    (directory / "scalars.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return directory / "scalars.json"


def iteration(step, loss=1.0, time=1.0, **more):
    return dict(loss=loss, time=time, step=step, **more)


@pytest.fixture
def resumed(tmp_path):
    """Got to 15, went on from 10 and validated twice; the first part's end does not count."""
    first = [iteration(step, loss=step, time=2.0, lr=0.1) for step in (5, 10, 15)]
    second = [iteration(step, loss=100 + step, time=4.0, lr=0.2) for step in (15, 20)]
    first.insert(2, {"coco/bbox_mAP": 0.1, "step": 0})  # mmengine's default by iteration
    first.append({"coco/bbox_mAP": 0.2, "step": 0})  # at 15: of the way that was left
    second.append({"coco/bbox_mAP": 0.3, "step": 20})  # log_metric_by_epoch=False
    write_part(tmp_path / "run", "20260101_000000", first)
    write_part(tmp_path / "run", "20260102_000000", second)
    return tmp_path / "run"


def test_parts_are_joined_and_repeated_steps_count_once(resumed):
    run = read_run(resumed)
    assert run.name == "run"
    assert [(entry["step"], entry["loss"]) for entry in run.train] == [
        (5, 5), (10, 10), (15, 115), (20, 120)
    ]  # fmt: skip
    assert [(entry["step"], entry["coco/bbox_mAP"]) for entry in run.val] == [(10, 0.1), (20, 0.3)]
    assert elapsed_seconds(run) == [10, 20, 40, 60]


def test_a_run_that_began_anew_leaves_nothing_of_the_old_one(resumed):
    write_part(resumed, "20260103_000000", [iteration(5, loss=7.0)])
    run = read_run(resumed)
    assert run.train == [iteration(5, loss=7.0)] and run.val == []


def test_one_part_or_one_file_can_be_read_alone(resumed):
    part = resumed / "20260101_000000"
    for path in (part, part / "vis_data", part / "vis_data" / "scalars.json"):
        run = read_run(path)
        assert run.name == "run" and [entry["step"] for entry in run.train] == [5, 10, 15]
    assert read_run(part, "other").name == "other"


def test_a_line_cut_by_a_kill_is_left_out_and_others_are_errors(tmp_path):
    file = write_part(tmp_path, "a", [iteration(1), iteration(2)])
    file.write_text(file.read_text()[:-9])
    assert [entry["step"] for entry in read_run(tmp_path).train] == [1]
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(ValueError, match=r"scalars\.json, line 1"):
        read_run(tmp_path)
    file.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="no scalars with a step"):
        read_run(tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="nothing was logged"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="holds no log of a run"):
        read_run(tmp_path / "gone")


def test_a_resumed_part_of_one_cut_line_adds_nothing(resumed):
    before = read_run(resumed)
    file = write_part(resumed, "20260103_000000", [])
    file.write_text('{"loss": 1.')
    assert read_run(resumed) == before
    with pytest.raises(ValueError, match="nothing was logged yet"):
        read_run(file)


def test_files_that_are_no_logs_are_named(tmp_path):
    for content, said in ((b"PK\x03\x04\xff\xfe", "it is no text"), (b"text", "line 1")):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.pth.*{said}"):
            read_run(tmp_path / "x.pth")


def test_text_and_lists_in_a_log_are_left_out(tmp_path):
    write_part(tmp_path, "a", [iteration(1, note="warm-up", memory=7)])
    assert read_run(tmp_path).train == [iteration(1, memory=7)]


def test_a_real_run_is_read_with_metrics_where_they_were_measured(tmp_path, monkeypatch):
    """Both of mmengine's ways to number validations lead to the iteration."""
    monkeypatch.chdir(tmp_path)
    config = write_tiny(tmp_path)
    options = ["train_cfg.max_iters=4", "train_cfg.val_interval=2"]
    options += ["default_hooks.logger.type=LoggerHook", "default_hooks.logger.interval=1"]
    for name, by_epoch in (("default", True), ("iterations", False)):
        way = f"default_hooks.logger.log_metric_by_epoch={by_epoch}"
        train.main([str(config), "--work-dir", name, "--cfg-options", *options, way])
        run = read_run(name)
        assert [entry["step"] for entry in run.train] == [1, 2, 3, 4]
        assert [entry["step"] for entry in run.val] == [2, 4]
        assert all(0 <= entry["coco/bbox_mAP"] <= 1 for entry in run.val)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by title of their panels: {run: [(x, y), ...]}."""
    figures = []

    def read(figure):
        panels = [axis for axis in figure.axes if axis.get_lines()]
        return {
            axis.get_title(): {
                line.get_label(): list(zip(*map(np.ndarray.tolist, line.get_data())))
                for line in axis.get_lines()
            }
            for axis in panels
        }

    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(read(self)), save(self, *a, **k))
    )
    return figures


def test_every_scalar_has_a_panel_and_every_run_its_line(resumed, drawn, tmp_path):
    other = RunLog("other", [iteration(10, loss_cls=0.5)], [])
    plot_runs([read_run(resumed), other], tmp_path / "new" / "run.png")
    (panels,) = drawn
    assert list(panels) == ["loss (sum)", "loss_cls", "learning rate", "coco/bbox_mAP"]
    assert panels["loss (sum)"]["run"] == [(5, 5), (10, 10), (15, 115), (20, 120)]
    assert panels["loss_cls"] == {"other": [(10, 0.5)]}
    assert panels["coco/bbox_mAP"] == {"run": [(10, 0.1), (20, 0.3)]}
    with Image.open(tmp_path / "new" / "run.png") as image:
        assert image.format == "PNG"

    plot_runs([read_run(resumed)], tmp_path / "run.png", x="time")
    hours = [place for place, _ in drawn[1]["coco/bbox_mAP"]["run"]]
    assert hours == pytest.approx([20 / 3600, 60 / 3600])


def test_without_any_metric_losses_are_drawn(resumed, drawn, tmp_path):
    """mmdet's validation gives none where nothing was found."""
    blind = RunLog("blind", [iteration(10, lr=0.1)], [dict(step=10, time=0.1, data_time=0.1)])
    plot_runs([blind], tmp_path / "run.png")
    assert list(drawn[0]) == ["loss (sum)", "learning rate"]
    plot_runs([blind, read_run(resumed)], tmp_path / "run.png")
    assert list(drawn[1]["coco/bbox_mAP"]) == ["run"]


def test_every_name_is_in_the_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(run_figure, "save_figure", lambda figure, _: figures.append(figure))
    names = ("_x", "$a$ $b$", "plain")
    plot_runs([RunLog(name, [iteration(10)], []) for name in names], tmp_path / "run.png")
    texts = figures[0].legends[0].get_texts()
    assert [text._preprocess_math(text.get_text())[0].strip() for text in texts] == list(names)


def test_what_cannot_be_drawn_is_an_error(resumed, tmp_path):
    run = read_run(resumed)
    with pytest.raises(ValueError, match=r"'coco/segm_mAP'; there are: coco/bbox_mAP$"):
        plot_runs([run], tmp_path / "a.png", metric="coco/segm_mAP")
    with pytest.raises(ValueError, match="two runs are called 'run'"):
        plot_runs([run, run], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no runs"):
        plot_runs([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        plot_runs([run], tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no iteration times"):
        plot_runs([RunLog("a", [dict(step=1, loss=1.0)], [])], tmp_path / "a.png", x="time")
    with pytest.raises(ValueError, match="nothing to plot yet"):  # a validation that found nothing
        plot_runs([RunLog("a", [], [dict(step=1, time=0.1, data_time=0.1)])], tmp_path / "a.png")
    assert not list(tmp_path.glob("a.*"))


def test_metrics_that_are_no_numbers_are_not_the_best(resumed):
    run = read_run(resumed)
    for entry, value in zip(run.val, (float("nan"), 0.2)):
        entry["coco/bbox_mAP"] = value
    assert plot_run.summary(run, "coco/bbox_mAP").endswith(
        "best coco/bbox_mAP 0.200 at iteration 20"
    )
    run.val.pop()
    assert plot_run.summary(run, "coco/bbox_mAP") == "run: loss 120 at iteration 20"


def test_lines_of_one_figure_all_differ():
    styles = {tuple(line_style(index).values()) for index in range(4 * len(COLORS))}
    assert len(styles) == 4 * len(COLORS)


def test_the_tool_names_runs_and_says_what_is_wrong(resumed, tmp_path, capsys, drawn):
    out = tmp_path / "out.png"
    plot_run.main([f"one={resumed}", str(resumed), "--out", str(out)])
    said = capsys.readouterr().out
    assert "one: loss 120 at iteration 20, best coco/bbox_mAP 0.300 at iteration 20" in said
    assert list(drawn[0]["loss (sum)"]) == ["one", "run"] and out.exists()
    assert "holds no log" in fails(capsys, plot_run.main, tmp_path / "gone")
    assert "must end in .png" in fails(capsys, plot_run.main, resumed, "--out", "a.pdf")
