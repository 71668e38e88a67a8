"""The benchmark's report: continued in its file, printed and drawn."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ropevit_mmdet.apis.benchmark.measure import Bench, largest, share_of_gpu
from ropevit_mmdet.apis.benchmark.report import add, begin, is_measured, plot, table
from tests.processes import ROOT, run_python
from tests.test_cli.test_tools import load_tool

SETTINGS = {
    "device": "a chip",
    "threads": 2,
    "dtype": "float32",
    "batch": 1,
    "compiled": False,
    "torch": "2",
}


def row(variant, pixels=56, mode="forward", seconds=1.0, peak=2**20):
    return dict(
        variant=variant, pixels=pixels, mode=mode, median=seconds, spread=0.1, runs=3,
        flops=5e9 if variant == "ours" else None, matmul_rate=1e10, peak_bytes=peak,
    )  # fmt: skip


def report():
    made = begin(SETTINGS, None, command="tools/benchmark.py")
    add(made, [row("ours"), row("theirs", seconds=2.5, peak=3 * 2**20)], [])
    left_out = dict(variant="theirs", pixels=112, mode="forward", why="does not fit in memory")
    add(made, [row("ours", pixels=112, seconds=4.0)], [left_out])
    return made


def test_the_table_compares_with_the_first_variant_and_says_what_is_left_out():
    lines = table(report()).splitlines()
    assert lines[1] == "matrix multiplication: 10.0 GFLOP/s"
    assert "50.0%" in lines[3] and "1.00" in lines[3]
    assert "2.50" in lines[4] and "3.00" in lines[4]
    assert [line.split()[6] for line in lines[3:5]] == ["1", "0.4"]  # images a second
    assert lines[-1].endswith("left out: does not fit in memory")


def test_a_report_is_continued(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report()))
    again = begin(SETTINGS, path, command="tools/benchmark.py --sizes 112")
    assert again["commands"] == ["tools/benchmark.py", "tools/benchmark.py --sizes 112"]
    assert is_measured(again, ["ours", "theirs"], 112, "forward")
    assert not is_measured(again, ["ours", "others"], 112, "forward")
    assert not is_measured(again, ["ours"], 112, "training")
    add(again, [row("ours", pixels=112, seconds=9.0)], [])
    assert [r["median"] for r in again["rows"]] == [1.0, 2.5, 9.0]
    assert again["left_out"] == []


@pytest.mark.parametrize("text", ["no JSON", "[]", json.dumps({"device": "a chip"})])
def test_another_file_is_not_taken_for_a_report(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no report of this benchmark to continue"):
        begin(SETTINGS, path, command="")


def test_figures_of_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report()))
    with pytest.raises(ValueError, match="has figures of threads 2, this run is 4"):
        begin(SETTINGS | {"threads": 4}, path, command="")


def test_the_plot_gives_a_variant_one_color_in_all_parts(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    made = report()
    add(made, [row("theirs", mode="training"), row("late", mode="training")], [])
    plot(made, tmp_path / "plot.png")
    colors = {}
    for axis in figures[0].axes:
        for line in axis.get_lines():
            assert colors.setdefault(line.get_label(), line.get_color()) == line.get_color()
    assert len(set(colors.values())) == 3
    shown = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert set(shown) == {"ours", "theirs", "late"}


def test_a_plot_of_another_kind_is_refused_before_anything_is_measured(monkeypatch):
    tool = load_tool("benchmark")
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("went on"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--plot", "times.pdf"])
    with pytest.raises(SystemExit, match=r"times\.pdf must end in \.png"):
        tool.main()


def test_the_tool_measures_and_draws(tmp_path):
    arguments = ["--variants", "windows", "--sizes", "56", "--modes", "forward", "--runs", "1"]
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"]
    done = run_python(ROOT / "tools" / "benchmark.py", *arguments, *files)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert found["variant"] == "windows" and found["median"] > 0 and found["peak_bytes"] > 0
    assert f"{found['median']:.4f}" in done.stdout
    with Image.open(tmp_path / "r.png") as image:
        assert min(image.size) > 400


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 37, 64])
def test_the_largest_batch_is_searched_for(limit):
    asked = []
    assert largest(lambda batch: asked.append(batch) or batch <= limit) == limit
    assert len(asked) == len(set(asked)) <= 14


def test_a_gpu_gives_a_step_no_more_memory_than_asked_for(monkeypatch):
    """37 images a GB of what PyTorch may take; one GB of the card is not PyTorch's."""
    bench, shares = Bench({}, batch=8), []
    bench.device = torch.device("cuda", 0)
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    fraction = "set_per_process_memory_fraction"
    monkeypatch.setattr(torch.cuda, fraction, lambda share, device: shares.append(share))

    def step(name, pixels, mode):
        if bench.batch > 37 * 80 * shares[-1]:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "step", step)
    assert bench.largest_batch("ours", 56, "training", 3) == 74
    assert shares == [2 / 80, 1.0] and bench.batch == 8


@pytest.mark.parametrize("gigabytes", [1, 82])
def test_a_gpu_is_not_asked_for_more_than_it_has(monkeypatch, gigabytes):
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with pytest.raises(ValueError, match=f"{gigabytes} GB: .* this GPU has 80.0"):
        share_of_gpu(torch.device("cuda"), gigabytes)


def test_a_report_without_the_largest_batches_is_continued():
    made = begin(SETTINGS, None, command="tools/benchmark.py")
    add(made, [row("ours") | dict(largest_batch={"24": 3})], [])
    assert is_measured(made, ["ours"], 56, "forward", batches_of=[24])
    assert not is_measured(made, ["ours"], 56, "forward", batches_of=[24, 80])


def test_the_largest_batch_is_that_of_a_gpu():
    with pytest.raises(ValueError, match="that of a GPU, not of cpu"):
        Bench({}).largest_batch("ours", 56, "forward", 24)
