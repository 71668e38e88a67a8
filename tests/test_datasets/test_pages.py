"""docs/labels.md and docs/first_hour.md: their commands lead from labels to a detector."""

import shlex
from pathlib import Path

import pytest

from ropevit_mmdet.engine.config import load_config
from tests.commands import ropevit
from tests.test_datasets.test_conversion import write_voc, write_yolo
from tests.test_docs import ROOT, commands

SMALL = {"size = (320, 320)": "size = (112, 112)", "max_iters = 2000": "max_iters = 2",
         "interval=500": "interval=2"}  # fmt: skip


def shrink(path: Path) -> None:
    """Rewrites a config: a small network and images, two iterations."""
    text = path.read_text()
    if all(old in text for old in SMALL):  # it is for a CPU
        for old, new in SMALL.items():
            text = text.replace(old, new)
        path.write_text(text)
        return
    config = load_config(path)
    config.model.backbone.update(arch="rope_vit_t14", init_cfg=None, out_indices=0)
    config.model.neck.update(in_channels=192, out_channels=16)
    config.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            step.update({key: (112, 112) for key in ("scale", "crop_size") if key in step})
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.interval = 2
    config.dump(path)


def run(lines: list[str], **stand_ins: str) -> None:
    """Runs commands of a page with other names, and a shrunk config."""
    for line in lines:
        for name, stand_in in {"iter_5000": "iter_2", "iter_2000": "iter_2", **stand_ins}.items():
            line = line.replace(name, stand_in)
        words = [word for word in shlex.split(line)[1:] if word != "--amp"]
        assert not ropevit(*words), line
        if words[0] == "convert":
            shrink(Path("my.py"))


@pytest.mark.parametrize(
    ("label_format", "write", "exported"),
    [
        ("yolo", write_yolo, False),
        pytest.param("voc", write_voc, True, marks=pytest.mark.slow),  # the export takes long
    ],
)
def test_labels(label_format, write, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "LABELS")
    install, *lines = commands(ROOT / "docs" / "labels.md")
    assert install.startswith("pip install") and len(lines) <= 6 and "export" in lines[-1]
    run(lines if exported else lines[:-1], voc=label_format)
    assert Path("detector.onnx").exists() == exported


@pytest.mark.parametrize(
    "complete", [False, pytest.param(True, marks=pytest.mark.slow)]
)  # 8 s; the other commands take longer, and run for other pages too
def test_the_first_hour(complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "LABELS")
    install, *lines = commands(ROOT / "docs" / "first_hour.md")
    assert install.startswith("pip install")
    lines = [one for one in lines if "photos" not in one and "pip" not in one]
    test_split = lines.pop()  # the drawn images have none
    assert "instances_test.json" in test_split and "export" in lines[-1]
    run(lines if complete else lines[:5], PHOTO="e")
    written = ("outputs/browse/contact_sheet.png", "outputs/run.png", "work_dirs/my/iter_2.pth")
    if complete:
        written += ("outputs/report.html", "outputs/features.png",
                    "outputs/predictions/overlays/e.jpg", "detector.onnx")  # fmt: skip
    assert all(Path(name).is_file() for name in written)
