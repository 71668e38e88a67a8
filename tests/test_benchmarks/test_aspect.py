"""The benchmark of batches with similar aspect ratios, on a tiny detector."""

import json

from benchmarks import aspect


def test_every_size_of_a_padded_batch_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(aspect, "MIX", {(640, 480): 50, (480, 640): 50})
    argv = ["shapes_maskrcnn", "--size", "112", "--batch", "2", "--runs", "1", "--images", "40"]
    aspect.main(
        [*argv, "--modes", "forward", "--json", str(tmp_path / "a.json"), "--device", "cpu"]
    )
    rows = json.loads((tmp_path / "a.json").read_text())
    square, similar = rows[aspect.SQUARE], rows["similar aspects"]
    assert similar["padding"] < square["padding"] and similar["gflop"] < square["gflop"]
    assert all(row["forward"] > 0 for row in rows.values())
    assert len(aspect.table(rows, ["forward"]).splitlines()) == 6
