"""The script of the GPU tables: what it measures, in which order, and where it writes."""

import json
import re
from collections import Counter

import pytest

from benchmarks import gpu_page
from ropevit_mmdet.apis.benchmark import measure

SMALL = "--size 112 --device cpu --backbones windows --dtype float32 --runs 1".split()
SMALL += ["--dino-backbone", ""]


def test_the_page_gets_tables_and_what_time_skipped(tmp_path, monkeypatch):
    measured, clock = [], iter([0, 1, 2, 3, 60])
    monkeypatch.setattr(gpu_page, "benchmark", lambda sources, **_: measured.append([*sources]))
    monkeypatch.setattr(gpu_page, "table", lambda report: f"table {len(measured)}")
    monkeypatch.setattr(gpu_page, "waits", lambda args, device: "3 waits")
    monkeypatch.setattr(gpu_page.time, "monotonic", lambda: next(clock))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu -->\nold\n<!-- gpu -->\nafter\n")
    argv = [*SMALL, "--configs", "a", "--minutes", "0.5", "--batch", "1", "2", "--page", str(page)]
    gpu_page.main([*argv, "--json", str(tmp_path / "r.json")])
    assert measured == [["windows"], ["a"], ["a"]]
    text = page.read_text()
    assert text.startswith("before\n<!-- gpu -->\n```text\ntable 3")
    assert "attention of 2 x 12 heads x 69 tokens: cudnn not available, flash" in text
    assert "3 waits" in text and "Skipped for lack of time: windows at batch 1." in text
    assert text.endswith("```\n<!-- gpu -->\nafter\n") and "old" not in text


def test_the_documented_page_has_the_marks():
    assert gpu_page.PAGE.read_text(encoding="utf-8").count(gpu_page.MARK) == 2


@pytest.mark.slow  # every table is measured
def test_the_script_completes_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "in_new_process", lambda function, *args: function(*args))
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- gpu -->\n")
    configs = [f"shapes_{name}" for name in ("maskrcnn", "retinanet", "dino")]
    argv = [*SMALL, "--configs", *configs, "--no-compile", "--batch", "1", "2", "--page", str(page)]
    gpu_page.main([*argv, "--json", str(tmp_path / "report.json")])
    reports = json.loads((tmp_path / "report.json").read_text())
    assert not any(report["skipped"] for report in reports)
    rows = [row["name"] for report in reports for row in report["rows"]]
    assert Counter(rows) == dict.fromkeys(["windows", *configs], 4)  # 2 modes, 2 batch sizes
    text = page.read_text()
    assert re.search(r"\d+ waits in a training step of shapes_maskrcnn\n +\d+ \S+\.py:\d+ ", text)
    assert "flash" in text and "Skipped" not in text
