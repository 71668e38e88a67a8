"""docs/first_hour.md: its commands lead from VOC labels to a detector, on drawn images."""

import shlex
from pathlib import Path

import pytest

from tests.commands import ropevit
from tests.test_datasets.test_conversion import write_voc
from tests.test_docs import ROOT, commands

SMALL = {"size = (320, 320)": "size = (112, 112)", "max_iters = 2000": "max_iters = 2",
         "interval=500": "interval=2"}  # fmt: skip


def shrink(path: Path) -> None:
    text = path.read_text()
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize(
    "complete", [False, pytest.param(True, marks=pytest.mark.slow)]
)  # 8 s; the other commands take longer, and run for other pages too
def test_the_commands_of_the_page(complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "LABELS")
    install, *lines = commands(ROOT / "docs" / "first_hour.md")
    assert install.startswith("pip install")
    lines = [one for one in lines if "photos" not in one and "pip" not in one]
    test_split = lines.pop()  # the drawn images have none
    assert "instances_test.json" in test_split and "export" in lines[-1]
    for line in lines if complete else lines[:5]:
        words = shlex.split(line.replace("iter_2000", "iter_2").replace("PHOTO", "e"))
        assert not ropevit(*words[1:]), line
        if words[1] == "convert":
            shrink(Path("my.py"))
    written = ("outputs/browse/contact_sheet.png", "outputs/run.png", "work_dirs/my/iter_2.pth")
    if complete:
        written += ("outputs/report.html", "outputs/features.png",
                    "outputs/predictions/overlays/e.jpg", "detector.onnx")  # fmt: skip
    assert all(Path(name).is_file() for name in written)
