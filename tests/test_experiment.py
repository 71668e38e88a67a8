"""Runs that are compared: resumed, kept, averaged; and the classification set cut from shapes."""

import json
import sys

import pytest
from PIL import Image

from ropevit_mmdet.compare.experiment import Run, mean_and_spread, result_of, training_seconds
from ropevit_mmdet.datasets.crops import cut_objects
from tests.tiny_coco import CLASSES, write_tiny

EXECUTE = """
import sys
from pathlib import Path
import ropevit_mmdet
from ropevit_mmdet.compare.experiment import execute
execute(Path(sys.argv[1]))
"""
COMMAND = [sys.executable, "-c", EXECUTE]


def test_a_run_is_trained_tested_and_kept(tmp_path):
    said = []
    config = write_tiny(tmp_path)
    options = {"train_cfg.max_iters": 4, "default_hooks.logger.type": "LoggerHook"}
    options["default_hooks.logger.interval"] = 1
    run = Run("first", str(config), options, seed=3)
    result = result_of(run, tmp_path / "runs", COMMAND, said.append)
    assert 0 <= result["metrics"]["coco/bbox_mAP"] <= 1
    assert result["iterations"] == 4 and result["train_seconds"] > 0 and result["parameters"] > 1e4
    assert len(said) == 1 and "first-seed3" in said[0]
    assert "seed=3" in (tmp_path / "runs" / "first-seed3" / "run.py").read_text()

    assert result_of(run, tmp_path / "runs", ["no such program"], said.append) == result
    other = run._replace(options={"train_cfg.max_iters": 2})
    with pytest.raises(RuntimeError, match="holds a run of other settings"):
        result_of(other, tmp_path / "runs", COMMAND, said.append)

    load_from = str(tmp_path / "runs" / "first-seed3" / "iter_4.pth")
    tested = run._replace(name="again", options={"load_from": load_from}, trains=False)
    again = result_of(tested, tmp_path / "runs", COMMAND, said.append)
    assert again["metrics"] == result["metrics"] and again["train_seconds"] == 0


def test_a_run_that_fails_names_its_log(tmp_path):
    run = Run("bad", str(write_tiny(tmp_path)), {})
    with pytest.raises(RuntimeError, match=r"bad-seed0 failed, see .*log.txt"):
        result_of(run, tmp_path, [sys.executable, "-c", "raise SystemExit(1)"], print)


def test_seconds_are_added_over_the_parts_of_a_run(tmp_path):
    """The second part goes on from iteration 10, the first had got to 15."""
    for part, entries in (("a", [(5, 1.0), (10, 2.0), (15, 9.0)]), ("b", [(15, 3.0), (20, 1.0)])):
        folder = tmp_path / part / "vis_data"
        folder.mkdir(parents=True)
        lines = [json.dumps(dict(step=step, time=time, loss=1.0)) for step, time in entries]
        lines.append(json.dumps({"coco/bbox_mAP": 0.5, "step": 20}))
        (folder / "scalars.json").write_text("\n".join(lines))
    assert training_seconds(tmp_path) == 5 * 1.0 + 5 * 2.0 + 5 * 3.0 + 5 * 1.0


def test_mean_and_spread():
    assert mean_and_spread([0.5]) == (0.5, 0.0)
    assert mean_and_spread([0.1, 0.3]) == pytest.approx((0.2, 0.1))


def test_objects_are_cut_into_folders_of_their_classes(tmp_path):
    write_tiny(tmp_path, pictures=6)
    data = tmp_path / "data"
    root = tmp_path / "classes"
    assert cut_objects(data / "pictures", data / "annotations.json", root, side=24) == 6
    assert {folder.name for folder in root.iterdir()} == set(CLASSES)
    for name, bright in zip(CLASSES, (False, True), strict=True):
        files = sorted((root / name).iterdir())
        assert len(files) == 3
        for file in files:
            with Image.open(file) as cut:
                assert cut.size == (24, 24)
                red = cut.getpixel((cut.width // 2, cut.height // 2))[0]
                assert (red == 220) if bright else (red == 20)
    before = {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
    assert cut_objects(data / "pictures", data / "annotations.json", root, side=24) == 6
    assert before == {file: file.stat().st_mtime_ns for file in root.glob("*/*")}
