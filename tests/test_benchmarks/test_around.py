"""What runs around a model: every section gives figures, and both evaluations the same."""

import json

import pytest

from benchmarks import around


def test_every_section_has_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(around.median_seconds, "__defaults__", (1,))
    argv = ["--images", "20", "--loaded", "4", "--size", "112", "--threads", "1"]
    around.main([*argv, "--gpu-images", "1e6", "--json", str(tmp_path / "a.json")])
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures.keys() == around.SECTIONS.keys()
    rate, workers = figures["loading"].values()
    assert rate > 1 and workers == pytest.approx(1e6 / rate, abs=1)
    for name in ("boxes", "masks"):
        assert 0.05 < figures["validation"][f"{name}: AP"] < 0.95
        assert figures["validation"][f"{name}: difference"] < 1e-12
    assert "RoIAlign: ms on 1 threads" in capsys.readouterr().out
