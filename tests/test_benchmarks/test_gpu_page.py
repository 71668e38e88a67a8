"""The script of the GPU tables: what it measures, in which order, and where it writes."""

import json
import re

import pytest

from benchmarks import gpu_page
from ropevit_mmdet.apis.benchmark import measure


def test_the_page_gets_tables_and_what_time_skipped(tmp_path, monkeypatch):
    measured = []
    clock = iter([0, 1, 2, 3, 60])

    def benchmark(sources, **settings):
        measured.append((list(sources), settings["batches"], settings["modes"]))
        assert settings["compiled"] and settings["device"] == "cpu" and settings["sizes"] == [112]
        return {"name": "-".join(sources)}

    monkeypatch.setattr(gpu_page, "benchmark", benchmark)
    monkeypatch.setattr(gpu_page, "table", lambda report: f"table of {report['name']}")
    monkeypatch.setattr(gpu_page, "waits", lambda args, device: "3 waits")
    monkeypatch.setattr(gpu_page.time, "monotonic", lambda: next(clock))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu -->\nold\n<!-- gpu -->\nafter\n")
    argv = ["--size", "112", "--device", "cpu", "--backbones", "windows", "--configs", "a"]
    argv += ["--dino-backbone", "", "--dtype", "float32", "--runs", "1", "--minutes", "0.5"]
    argv += ["--batch", "1", "2", "--page", str(page), "--json", str(tmp_path / "r.json")]
    gpu_page.main(argv)
    both = ["forward", "training"]
    assert measured == [(["windows"], [2], both), (["a"], [1], both), (["a"], [2], both)]
    assert len(json.loads((tmp_path / "r.json").read_text())) == 3
    text = page.read_text()
    assert text.startswith("before\n<!-- gpu -->\n```text\ntable of windows\n```")
    assert "attention of 2 x 12 heads x 69 tokens: cudnn not available, flash" in text
    assert (
        "mmcv" in text
        and "3 waits" in text
        and "Skipped for lack of time: windows at batch 1." in text
    )
    assert text.endswith("```\n<!-- gpu -->\nafter\n") and "old" not in text


def test_the_documented_page_has_the_marks():
    assert gpu_page.PAGE.read_text(encoding="utf-8").count(gpu_page.MARK) == 2


@pytest.mark.slow  # every table is measured
def test_the_script_completes_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "in_new_process", lambda function, *args: function(*args))
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- gpu -->\n")
    configs = [f"shapes_{name}" for name in ("maskrcnn", "retinanet", "dino")]
    argv = ["--size", "112", "--device", "cpu", "--backbones", "windows", "--configs", *configs]
    argv += ["--dino-backbone", "", "--dtype", "float32", "--runs", "1", "--no-compile"]
    argv += ["--batch", "1", "2"]
    gpu_page.main([*argv, "--page", str(page), "--json", str(tmp_path / "report.json")])
    reports = json.loads((tmp_path / "report.json").read_text())
    assert not any(report["skipped"] for report in reports)
    rows = [
        (row["name"], row["mode"], row["batch"]) for report in reports for row in report["rows"]
    ]
    modes = [(mode, batch) for mode in ("forward", "training") for batch in (1, 2)]
    expected = {(name, *both) for name in ("windows", *configs) for both in modes}
    assert set(rows) == expected and len(rows) == len(expected)
    text = page.read_text()
    assert re.search(r"\d+ waits in a training step of shapes_maskrcnn\n +\d+ \S+\.py:\d+ ", text)
    assert "flash" in text and "Skipped" not in text
