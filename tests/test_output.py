"""Directories that results are written into: tried before the work, written to whole or not at all."""

import os
from pathlib import Path

import pytest

from ropevit_mmdet._output import check_output_directory, output_directory
from ropevit_mmdet.visualization.figure_file import check_png
from tests.test_cli.test_tools import fails, load_tool
from tests.tiny_coco import write_tiny


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A directory that may not be written to, for root too."""
    directory, may = tmp_path / "locked", os.access
    directory.mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != directory and may(path, mode)
    )
    return directory


@pytest.mark.parametrize(
    ("tool", "argv"),
    [
        ("predict", ["gone.py", "gone.pth", "gone.png", "--out-dir"]),
        ("browse_dataset", ["gone.py", "--not-show", "--output-dir"]),
        ("plot_results", ["gone.py", "gone.pkl", "--out-dir"]),
        ("plot_run", ["gone", "--out"]),
        ("show_features", ["gone.pth", "gone.png", "--out"]),
    ],
)
def test_tools_try_a_directory_before_the_work(locked, capsys, tool, argv):
    name = "run.png" if argv[-1] == "--out" else "new/out"
    said = fails(capsys, load_tool(tool).main, *argv, locked / name)
    assert f"{locked} is not writable" in said
    assert not list(locked.iterdir())


def test_files_that_cannot_be_figures_are_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").touch()
    check_png(tmp_path / "b.png")
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name[0] != "b" and may(path, mode)
    )
    for name in ("a.png", "b.png"):
        with pytest.raises(
            ValueError, match=rf"cannot write .*{name}: a directory, or not writable"
        ):
            check_png(tmp_path / name)


def test_a_directory_that_is_there_needs_nothing_of_the_one_it_lies_in(locked, tmp_path):
    """As with a disk that is mounted there: nothing can be renamed into it from outside."""
    (locked / "out").mkdir()
    check_output_directory(locked / "out")
    with output_directory(locked / "out") as directory:
        assert directory.parent == locked / "out"
        (directory / "a").touch()
    assert [path.name for path in (locked / "out").iterdir()] == ["a"]
    with output_directory(tmp_path / "new") as directory:
        assert not (tmp_path / "new").exists()
        (directory / "a").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


@pytest.mark.parametrize("tool", ["train", "test", "demo", "soak"])
def test_a_work_dir_that_cannot_be_one(tool, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    config = write_tiny(tmp_path)
    argv = dict(train=[config], test=[config, "none.pth"]).get(tool, ["--config", config])
    line = fails(capsys, load_tool(tool).main, *argv, "--work-dir", tmp_path / "file" / "run")
    assert "is a file, give another directory" in line
