"""The table of detectors: its rows, its states, and how it is written."""

from benchmarks import detectors

NOT_A_DETECTOR = "reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20"


def test_results_are_kept_and_become_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "rows", lambda: [NOT_A_DETECTOR])
    monkeypatch.setattr(detectors, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(detectors, "tiny_weights", lambda directory: "none.pt")
    monkeypatch.setattr(detectors, "in_process", lambda *arguments: "cannot adapt X: a reason")
    detectors.PAGE.write_text("before\n<!-- table -->\nold\n<!-- table -->\nafter\n")
    detectors.main(["--work-dir", str(tmp_path)])
    monkeypatch.setattr(detectors, "trial", None)
    detectors.main(["--work-dir", str(tmp_path)])
    text = detectors.PAGE.read_text()
    assert "Of 1 directories: 0 works, 0 upstream, 1 not applicable, 0 fails." in text
    assert "BaseReID + GlobalAveragePooling | not applicable: a reason |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text


def test_a_failure_is_upstream_if_the_own_backbone_fails(monkeypatch):
    monkeypatch.setattr(detectors, "detector", lambda name: "")
    for own, result in (("X: b", "upstream: X: b"), ("", "fails: X: a")):
        errors = {detectors._adapted: "X: a", detectors._own: own}
        monkeypatch.setattr(detectors, "in_process", lambda function, *_, e=errors: e[function])
        assert detectors.trial("one", "none.pt")["result"] == result


def test_every_directory_has_a_row():
    names = detectors.rows()
    assert len(names) == len({name.split("/")[0] for name in names}) >= 115  # 116 in the fork
    missing = [name for name in names if not (detectors.CONFIGS / f"{name}.py").is_file()]
    assert not missing
