"""Rows of the benchmark, its table and plot, and the command."""

import ctypes
import json
import os
from importlib import import_module

import pytest
import torch

from benchmarks import peers
from ropevit_mmdet.apis.benchmark.measure import Bench, in_new_process, measure
from ropevit_mmdet.apis.benchmark.report import plot, table
from ropevit_mmdet.errors import UserError
from tests.commands import fails, ropevit

measuring = import_module("ropevit_mmdet.apis.benchmark.measure")
ARGV = ["--sizes", "112", "--runs", "1", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def quick(monkeypatch):
    """Memory in this process: another one imports everything again. Small matrix products."""

    def in_this_process(function, *args):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that other tests freed is used again
        return function(*args)

    monkeypatch.setattr(measuring, "in_new_process", in_this_process)
    monkeypatch.setattr(measuring, "_MATRIX", {"cpu": 64})


def test_rows_have_medians_spreads_and_shares(quick, monkeypatch):
    taken = iter([(1.0, {"a": 1.0}), (4.0, {"b": 4.0}), (2.0, {"a": 2.0}), (3.0, {"a": 3.0})])
    monkeypatch.setattr(Bench, "seconds", lambda bench: next(taken))
    monkeypatch.setattr(Bench, "peak_memory", lambda bench: (5, 7))
    monkeypatch.setattr(Bench, "flops", lambda bench: {"a": 30.0, "other": 6.0})
    monkeypatch.setattr(Bench, "run", lambda bench: {})
    monkeypatch.setattr(measuring, "matrix_rate", lambda device, dtype: 20.0)
    (row,), _ = measure({("x", False): Bench("x", 8, batch=5)}, runs=4, progress=str)
    assert row["median"] == 2.5 and row["spread"] == 1.5 and row["images_per_second"] == 2
    assert row["flops"] == 36 and row["share"] == 36 / 2.5 / 20 and row["matrix_rate"] == 20
    assert row["parts"]["a"]["median"] == 1.5 and row["parts"]["a"]["share"] == 1
    assert row["parts"]["b"] == dict(median=0, spread=1, flops=0, share=0)
    assert (row["weight_bytes"], row["peak_bytes"]) == (5, 7)


def test_the_table_has_ratios_to_the_first_of_a_group_and_skipped_ones(tmp_path):
    part = dict(median=0.5, spread=0.1, flops=2e9, share=0.25)
    row = dict(pixels=56, mode="forward", batch=2, flops=5e9, matrix_rate=1e10, name="ours")
    row |= dict(parts={"backbone": part}, compiled=False, median=1.0, spread=0.1, share=0.5)
    row |= dict(images_per_second=2.0, peak_bytes=2**20)
    rows = [row, row | dict(compiled=True, median=2.5), row | dict(batch=4)]
    settings = dict(device="a chip", threads=2, dtype="float32", torch="2", date="today")
    report = settings | dict(rows=rows, skipped=[row | dict(name="b", why="MemoryError: ")])
    lines = [line.split() for line in table(report).splitlines()]
    assert lines[4] == "ours 1.0000 0.1000 100% 5.0 50% 2 1.00 1".split()
    assert lines[5] == "backbone 0.5000 0.1000 50% 2.0 25%".split()
    assert lines[6][:2] == ["ours,", "compiled"] and lines[6][-2] == "2.50"
    assert lines[11][-2] == "1.00" and lines[-1][-2:] == ["skipped:", "MemoryError:"]
    plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_variant_that_fails_does_not_cost_the_others(monkeypatch):
    def fails_for(name, value, error):
        def method(bench):
            if bench.source == name:
                raise error
            return value

        return method

    missing, full = ModuleNotFoundError("No module named 'x'"), MemoryError("out of memory")
    monkeypatch.setattr(Bench, "peak_memory", fails_for("b", (5, 7), missing))
    monkeypatch.setattr(Bench, "seconds", fails_for("c", (1.0, {}), full))
    for name in ("flops", "run"):
        monkeypatch.setattr(Bench, name, lambda bench: {})
    rows, skipped = measure({(n, False): Bench(n, 8) for n in "bca"}, runs=2, progress=str)
    assert [row["name"] for row in rows] == ["a"] and rows[0]["median"] == 1
    assert [(one["name"], one["why"]) for one in skipped] == [
        ("b", "ModuleNotFoundError: No module named 'x'"),
        ("c", "MemoryError: out of memory"),
    ]


def test_the_command_measures_and_plans(quick, tmp_path, capsys):
    argv = ["shapes_retinanet", *ARGV, "--batch", "1", "2", "--modes", "training"]
    ropevit("benchmark", *argv, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [row["batch"] for row in report["rows"]] == [1, 2] and not report["skipped"]
    for row in report["rows"]:
        assert row["peak_bytes"] > 0 and row["weight_bytes"] > 1e6
        assert row["flops"] == sum(part["flops"] for part in row["parts"].values()) > 1e9
    output = capsys.readouterr().out
    assert f"{report['rows'][0]['median']:.4f}" in output
    assert "shapes_retinanet, 112 px: 2,250 optimizer steps of 2 images" in output


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["nobody"], "config nobody is neither a file nor the name of a packaged config"),
        (["mmdet::nobody"], "config mmdet::nobody: "),
        (
            ["shapes_eomt", "shapes_retinanet", "--checkpoint", "x"],
            "--checkpoint needs a single CONFIG",
        ),
        (["shapes_eomt", "--plot", "x.jpg"], "must end in .png"),
    ],
)
def test_the_command_checks_its_arguments_first(argv, error, capsys):
    assert error in fails(capsys, "benchmark", *argv)


def test_peers_have_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["peers", "windows", "sam", "birder::vitdet", "--data"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "--data only configs" in capsys.readouterr().err
    with pytest.raises(UserError, match="multiples of 56, not 57"):
        assert Bench(peers.PEERS["windows"], 57).work


def test_the_matrix_rate_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(measuring, "_MATRIX", {"cpu": 100})
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(measuring, "_clock", lambda device: next(clock))
    assert measuring.matrix_rate(torch.device("cpu"), torch.float32) == 1e6


def test_memory_is_measured_in_a_new_process():
    assert in_new_process(os.getpid) != os.getpid()
