"""The script of the GPU tables: what it measures, in which order, and where it writes."""

import json

from benchmarks import gpu_page


def test_the_page_gets_tables_and_what_time_skipped(tmp_path, monkeypatch):
    measured = []
    clock = iter([0, 1, 2, 3, 60])

    def benchmark(sources, **settings):
        measured.append((list(sources), settings["batches"], settings["modes"]))
        assert settings["compiled"] and settings["device"] == "cpu" and settings["sizes"] == [112]
        return {"name": "-".join(sources)}

    monkeypatch.setattr(gpu_page, "benchmark", benchmark)
    monkeypatch.setattr(gpu_page, "table", lambda report: f"table of {report['name']}")
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
    assert "mmcv" in text and "Skipped for lack of time: windows at batch 1." in text
    assert text.endswith("```\n<!-- gpu -->\nafter\n") and "old" not in text


def test_the_documented_page_has_the_marks():
    assert gpu_page.PAGE.read_text(encoding="utf-8").count(gpu_page.MARK) == 2
